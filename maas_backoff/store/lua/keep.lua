--[[ Renew reservations, with what has changed about them.
KEYS: ledger
ARGV: now lease_ms how | per reservation: id mib state owner rest
Returns: ids that are not there (any more)
`how` is 'renew': longer, as it is; 'change': and as it is given; 'enter': also where it is not there.
]]
--#include _clock
--#include _ledger
local now, lease_ms, how = clock(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
begin_writing(KEYS[1])
local missing = {}
for n = 4, #ARGV, 5 do
  local name = 'r:' .. ARGV[n]
  local stored = redis.call('HGET', KEYS[1], name)
  local before = stored and reservation(stored)
  if how == 'enter' or before and before.expiry >= now then
    local expiry = whole(now + lease_ms)
    local start_until = before and before.start_until or 0
    local value = table.concat({ expiry, ARGV[n + 1], ARGV[n + 2], whole(start_until), ARGV[n + 3], ARGV[n + 4] }, ' ')
    if how == 'renew' then value = expiry .. string.match(stored, ' .*') end
    redis.call('HSET', KEYS[1], name, value)
    redis.call('PEXPIRE', KEYS[1], KEPT_MS)
  else
    missing[#missing + 1] = ARGV[n]
  end
end
return missing
