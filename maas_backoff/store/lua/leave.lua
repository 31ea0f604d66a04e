--[[ Remove a worker from the registry; wake another worker, because this one may have taken a marker.
KEYS: workers info marker ready scheduled demands gpu_marker suspects host
ARGV: worker
Returns: nothing
]]
local for_slots, for_gpus = redis.call('EXISTS', KEYS[4], KEYS[5], KEYS[8]) > 0, redis.call('EXISTS', KEYS[6]) > 0
redis.call('ZREM', KEYS[1], '')
redis.call('UNLINK', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.pcall('HDEL', KEYS[9], ARGV[1])
if for_slots then redis.pcall('ZADD', KEYS[3], 0, '0') end
if for_gpus then redis.pcall('ZADD', KEYS[7], 0, '0') end
