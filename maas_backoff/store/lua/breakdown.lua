--[[ Read the history by kind or by tenant, in steps.
KEYS: meta
ARGV: now prefix of step steps name
Returns: now, and per step, the newest first, names and numbers in turn, as _breakdown.lua writes them
`of` is 'k' for kinds, or 't' for tenants. `step` is the length of a step in minutes: 1 or 10. `steps` is their number, the present one included. An empty `name` reads all names.
]]
--#include _clock
--#include _time
--#include _time_of
local state = redis.call('HMGET', KEYS[1], 'ahead', 'reaped_at')
local now, prefix, step, name, rows = queue_time(clock(ARGV[1]), state[1], state[2]), ARGV[2], tonumber(ARGV[4]), ARGV[6], {}
local key = ({
  ['k 1'] = prefix .. 'hk:', ['k 10'] = prefix .. 'hk10:', ['t 1'] = prefix .. 'ht:', ['t 10'] = prefix .. 'ht10:',
})[ARGV[3] .. ' ' .. ARGV[4]]
for back = 0, tonumber(ARGV[5]) - 1 do
  local one = key .. (math.floor(now / 60000 / step) - back)
  if name == '' then
    rows[back + 1] = redis.call('HGETALL', one)
  else
    local numbers = redis.call('HGET', one, name)
    rows[back + 1] = numbers and { name, numbers } or {}
  end
end
return { reply_time(now, state[1]), rows }
