--[[ Read a task; say for how long somebody watches it.
KEYS: task ready watched meta
ARGV: now id watch_ms
Returns: now, how many ready tasks come before it or -1, the task's fields, whether the queue is paused (1 or 0)
]]
--#include _clock
local watched, id = KEYS[3], ARGV[2]
local now, watch_ms = clock(ARGV[1]), tonumber(ARGV[3])
local task = redis.call('HGETALL', KEYS[1])
local ahead = redis.call('ZRANK', KEYS[2], id)
local paused = redis.call('HEXISTS', KEYS[4], 'paused')
if watch_ms > 0 and #task > 0 then
  redis.call('ZREM', KEYS[2], '')  -- a first write that a full memory does not refuse
  redis.call('ZADD', watched, whole(now + watch_ms), id)
  redis.call('ZREMRANGEBYSCORE', watched, '-inf', now)
  redis.call('PEXPIRE', watched, whole(watch_ms))
end
return { whole(now), ahead or -1, task, paused }
