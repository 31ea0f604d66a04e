--[[ Read the history by the minute, and of all time.
KEYS: totals meta
ARGV: now prefix minutes
Returns: now, the names and numbers of all time, the numbers of finished tasks in `meta`, and per minute, the newest first, its names and numbers
]]
--#include _clock
--#include _time
--#include _time_of
local state = redis.call('HMGET', KEYS[2], 'ahead', 'reaped_at', 'completed', 'failed', 'cancelled')
local now, prefix, rows = queue_time(clock(ARGV[1]), state[1], state[2]), ARGV[2], {}
for back = 0, tonumber(ARGV[3]) - 1 do
  rows[back + 1] = redis.call('HGETALL', prefix .. 'h:' .. (math.floor(now / 60000) - back))
end
return { reply_time(now, state[1]), redis.call('HGETALL', KEYS[1]), { state[3], state[4], state[5] }, rows }
