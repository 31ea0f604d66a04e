--[[ Count the tasks that become due in each of the next steps of time.
KEYS: scheduled meta
ARGV: now step_ms steps
Returns: now, and per step how many tasks
]]
--#include _clock
--#include _time
--#include _time_of
local now, step, counts = queue_time_of(ARGV[1], KEYS[2]), tonumber(ARGV[2]), {}
for n = 1, tonumber(ARGV[3]) do
  local from, to = now + (n - 1) * step, now + n * step
  counts[n] = redis.call('ZCOUNT', KEYS[1], string.format('(%.4f', from), string.format('%.4f', to))
end
return { whole(now), counts }
