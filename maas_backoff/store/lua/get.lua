--[[ Read a task; say until when somebody waits for its end.
KEYS: task workers
ARGV: now wait_ms
Returns: now, number of live workers, the task's fields
]]
--#include _clock
local now, wait_ms = clock(ARGV[1]), tonumber(ARGV[2])
local task = redis.call('HGETALL', KEYS[1])
local workers = redis.call('ZCOUNT', KEYS[2], now, '+inf')
if wait_ms > 0 and #task > 0 and not redis.call('HGET', KEYS[1], 'f') then
  redis.call('ZREM', KEYS[2], '')  -- a first write that a full memory does not refuse
  redis.call('HSET', KEYS[1], 'w', whole(now + wait_ms))
end
return { whole(now), workers, task }
