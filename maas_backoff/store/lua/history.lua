--[[ Read the history in steps, and of all time.
KEYS: totals meta
ARGV: now prefix step steps
Returns: now, the names and numbers of all time, the numbers of finished tasks in `meta`, and per step, the newest first, names and numbers: of a minute those of the minute, of a longer step those of all time at its start
`step` is the length of a step in minutes: 1, 10 or 60. `steps` is their number, the present one included.
]]
--#include _clock
--#include _time
--#include _time_of
local state = redis.call('HMGET', KEYS[2], 'ahead', 'reaped_at', 'completed', 'failed', 'cancelled')
local now, prefix, step, rows = queue_time(clock(ARGV[1]), state[1], state[2]), ARGV[2], tonumber(ARGV[3]), {}
local names = ({ ['1'] = prefix .. 'h:', ['10'] = prefix .. 'h10:', ['60'] = prefix .. 'h60:' })[ARGV[3]]
for back = 0, tonumber(ARGV[4]) - 1 do
  rows[back + 1] = redis.call('HGETALL', names .. (math.floor(now / 60000 / step) - back))
end
return { reply_time(now, state[1]), redis.call('HGETALL', KEYS[1]), { state[3], state[4], state[5] }, rows }
