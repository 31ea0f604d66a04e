--[[ Read a task; say until when somebody waits for its end.
KEYS: task ready
ARGV: now id wait_ms
Returns: now, how many ready tasks come before it or -1, the task's fields
]]
--#include _clock
local now, wait_ms = clock(ARGV[1]), tonumber(ARGV[3])
local task = redis.call('HGETALL', KEYS[1])
local ahead = redis.call('ZRANK', KEYS[2], ARGV[2])
if wait_ms > 0 and #task > 0 and not redis.call('HGET', KEYS[1], 'f') then
  redis.call('ZREM', KEYS[2], '')  -- a first write that a full memory does not refuse
  redis.call('HSET', KEYS[1], 'w', whole(now + wait_ms))
end
return { whole(now), ahead or -1, task }
