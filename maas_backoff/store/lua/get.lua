--[[ Read a task; note for how long a client watches it.
KEYS: task watched meta
ARGV: now prefix id watch_ms
Returns: now, how many ready tasks of its kind come before it or -1, the task's fields, whether the queue is paused (1 or 0)
]]
--#include _clock
--#include _time
--#include _time_of
--#include _queue
local watched, prefix, id, watch_ms = KEYS[2], ARGV[2], ARGV[3], tonumber(ARGV[4])
local state = redis.call('HMGET', KEYS[3], 'ahead', 'reaped_at', 'paused')
local now, watch_s = queue_time(clock(ARGV[1]), state[1], state[2]), math.ceil(watch_ms / 1000)
local task = redis.call('HGETALL', KEYS[1])
local base = prefix
for f = 1, #task, 2 do
  if task[f] == 'p' then base = base_of(prefix, select(3, terms_of(task[f + 1]))) end
end
local ready = base .. 'ready'
local ahead = redis.call('ZRANK', ready, id)
if watch_ms > 0 and #task > 0 then
  redis.call('ZREM', ready, '')  -- a first write that a full memory does not refuse
  -- Each command is tried before the first real write: without EXPIRE, `watched` would be kept for ever.
  redis.call('ZADD', watched, 'XX', 0, '')
  redis.call('EXPIRE', watched, watch_s)
  redis.call('ZREMRANGEBYSCORE', watched, '-inf', now)
  redis.call('ZADD', watched, whole(now + watch_ms), id)
  redis.call('EXPIRE', watched, watch_s)
end
return { reply_time(now, state[1]), ahead or -1, task, state[3] and 1 or 0 }
