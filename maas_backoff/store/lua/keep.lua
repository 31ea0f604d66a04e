--[[ Renew reservations, with what has changed about them.
KEYS: ledger
ARGV: now lease_ms how | per reservation: id mib state owner rest
Returns: ids that are not there (any more)
`how` is 'renew': longer, as it is; 'change': and as it is given; 'enter': also where it is not there.
]]
--#include _clock
--#include _ledger
local now, ahead = ledger_time(ARGV[1], redis.call('HGET', KEYS[1], 'clock'))
local lease_ms, how, kept, missing = tonumber(ARGV[2]), ARGV[3], {}, {}
local expiry = whole(now + lease_ms)
for n = 4, #ARGV, 5 do
  local name = 'r:' .. ARGV[n]
  local stored = redis.call('HGET', KEYS[1], name)
  local before = stored and reservation(stored)
  if how == 'enter' or before and before.expiry >= now then
    local start_until = before and before.start_until or 0
    local value = table.concat({ expiry, ARGV[n + 1], ARGV[n + 2], whole(start_until), ARGV[n + 3], ARGV[n + 4] }, ' ')
    if how == 'renew' then value = expiry .. string.match(stored, ' .*') end
    kept[#kept + 1], kept[#kept + 2] = name, value
  else
    missing[#missing + 1] = ARGV[n]
  end
end
if #kept > 0 then
  begin_writing(KEYS[1], now, ahead)
  for n = 1, #kept, 2 do redis.call('HSET', KEYS[1], kept[n], kept[n + 1]) end
end
return missing
