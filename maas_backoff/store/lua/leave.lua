--[[ Remove a worker from the registry; wake another worker, because this one may have taken a marker. Not for paused kinds.
KEYS: workers info scheduled demands host
ARGV: prefix worker kinds
Returns: nothing
]]
--#include _queue
local wake, wake_gpu, for_gpus = {}, {}, redis.call('EXISTS', KEYS[4]) == 1
for _, base in ipairs((open_bases_of(ARGV[1], ARGV[3]))) do
  -- `turns` has the tenants with tasks in lanes.
  if redis.call('EXISTS', base .. 'ready', base .. 'ready:turns', base .. 'suspects', KEYS[3]) > 0 then wake[base] = true end
  if for_gpus then wake_gpu[base] = true end
end
redis.call('ZREM', KEYS[1], '')
redis.call('UNLINK', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[2])
redis.pcall('HDEL', KEYS[5], ARGV[2])
wake_bases(wake, wake_gpu)
