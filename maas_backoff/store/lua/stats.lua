--[[ Count a queue's tasks by state.
KEYS: ready suspects gpu scheduled leases external completed failed cancelled
ARGV: now prefix
Returns: pending scheduled processing completed failed cancelled, ms since the head of the queue became due
]]
--#include _clock
local now, prefix = clock(ARGV[1]), ARGV[2]
local function card(key) return redis.call('ZCARD', key) end

local oldest = now
for k = 1, 3 do
  local head = redis.call('ZRANGE', KEYS[k], 0, 0)[1]
  if head then
    local task = redis.call('HMGET', prefix .. 't:' .. head, 'u', 'p')
    local due = task[1] or task[2] and string.match(task[2], '^%d+')
    if due then oldest = math.min(oldest, tonumber(due)) end
  end
end
local later = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2]
if later then oldest = math.min(oldest, tonumber(later)) end

return {
  card(KEYS[1]) + card(KEYS[2]) + card(KEYS[3]) + card(KEYS[4]),
  redis.call('ZCOUNT', KEYS[4], string.format('(%.3f', now), '+inf'),
  card(KEYS[5]) + card(KEYS[6]),
  redis.call('ZCOUNT', KEYS[7], now, '+inf'),
  redis.call('ZCOUNT', KEYS[8], now, '+inf'),
  redis.call('ZCOUNT', KEYS[9], now, '+inf'),
  whole(now - oldest),
}
