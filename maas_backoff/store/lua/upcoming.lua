--[[ Count the tasks that become due in the next while, by steps of time.
KEYS: scheduled
ARGV: now step_ms steps
Returns: now, and per step how many
]]
--#include _clock
local now, step, counts = clock(ARGV[1]), tonumber(ARGV[2]), {}
for n = 1, tonumber(ARGV[3]) do
  local from, to = now + (n - 1) * step, now + n * step
  counts[n] = redis.call('ZCOUNT', KEYS[1], string.format('(%.4f', from), string.format('%.4f', to))
end
return { whole(now), counts }
