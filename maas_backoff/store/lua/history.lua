--[[ Read what has happened, by the minute.
KEYS: totals meta
ARGV: now prefix minutes
Returns: now, the names and numbers of all time, those of the finished in `meta`, and per minute, the newest first, its names and numbers
]]
--#include _clock
local now, prefix, rows = clock(ARGV[1]), ARGV[2], {}
for back = 0, tonumber(ARGV[3]) - 1 do
  rows[back + 1] = redis.call('HGETALL', prefix .. 'h:' .. (math.floor(now / 60000) - back))
end
return { whole(now), redis.call('HGETALL', KEYS[1]), redis.call('HMGET', KEYS[2], 'completed', 'failed', 'cancelled'), rows }
