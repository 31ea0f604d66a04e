--[[ Let the leases of a worker run out whose process has ended, and remove the worker from the registry.
KEYS: leases workers info host
ARGV: prefix worker cursor
Returns: how many leases, the next cursor
A cursor of 0 begins, and ends. Changes no task: a lease of 0 has run out for certain, and reap.lua lists it at once.
The entry goes last: until then another worker of the host does the same.
]]
--#include _task
local leases, prefix, worker = KEYS[1], ARGV[1], ARGV[2]
local found = redis.call('ZSCAN', leases, ARGV[3], 'COUNT', 1000)
local ended = {}
for n = 1, #found[2], 2 do
  local id = found[2][n]
  local task = tonumber(found[2][n + 1]) > 0 and fields_of(prefix .. 't:' .. id, 'y')
  if task and task[1] and string.match(task[1], '^%S+ ([^\n]+)') == worker then
    ended[#ended + 1] = 0
    ended[#ended + 1] = id
  end
end

redis.call('ZREM', leases, '')
redis.call('ZREM', KEYS[2], '')
redis.call('UNLINK', prefix .. 'never')
if #ended > 0 then
  redis.call('ZADD', leases, 'XX', 0, '')
  for i = 1, #ended, 1000 do redis.call('ZADD', leases, 'XX', unpack(ended, i, math.min(i + 999, #ended))) end
end
if found[1] == '0' then
  redis.call('UNLINK', KEYS[3])
  redis.call('ZREM', KEYS[2], worker)
  redis.pcall('HDEL', KEYS[4], worker)
end
return { #ended / 2, found[1] }
