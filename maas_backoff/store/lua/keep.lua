--[[ Renew reservations, with what has changed about them.
KEYS: ledger
ARGV: now lease_ms again | per reservation: id mib state owner rest
Returns: ids that are not there (any more); with `again` = 1 they are entered again
]]
--#include _clock
--#include _ledger
local now, lease_ms, again = clock(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local missing = {}
for n = 4, #ARGV, 5 do
  local name = 'r:' .. ARGV[n]
  local stored = redis.call('HGET', KEYS[1], name)
  local before = stored and reservation(stored)
  if again or before and before.expiry >= now then
    local start_until = before and before.start_until or 0
    local value = { whole(now + lease_ms), ARGV[n + 1], ARGV[n + 2], whole(start_until), ARGV[n + 3], ARGV[n + 4] }
    redis.call('HSET', KEYS[1], name, table.concat(value, ' '))
    redis.call('PEXPIRE', KEYS[1], KEPT_MS)
  else
    missing[#missing + 1] = ARGV[n]
  end
end
return missing
