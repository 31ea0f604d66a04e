--[[ Read a task; note for how long a client watches it.
KEYS: task ready watched meta
ARGV: now id watch_ms
Returns: now, how many ready tasks come before it or -1, the task's fields, whether the queue is paused (1 or 0)
]]
--#include _clock
--#include _time
--#include _time_of
local watched, id, watch_ms = KEYS[3], ARGV[2], tonumber(ARGV[3])
local state = redis.call('HMGET', KEYS[4], 'ahead', 'reaped_at', 'paused')
local now, watch_s = queue_time(clock(ARGV[1]), state[1], state[2]), math.ceil(watch_ms / 1000)
local task = redis.call('HGETALL', KEYS[1])
local ahead = redis.call('ZRANK', KEYS[2], id)
if watch_ms > 0 and #task > 0 then
  redis.call('ZREM', KEYS[2], '')  -- a first write that a full memory does not refuse
  -- Each command is tried before the first real write: without EXPIRE, `watched` would be kept for ever.
  redis.call('ZADD', watched, 'XX', 0, '')
  redis.call('EXPIRE', watched, watch_s)
  redis.call('ZREMRANGEBYSCORE', watched, '-inf', now)
  redis.call('ZADD', watched, whole(now + watch_ms), id)
  redis.call('EXPIRE', watched, watch_s)
end
return { reply_time(now, state[1]), ahead or -1, task, state[3] and 1 or 0 }
