--[[ Renew reservations, with their changes.
KEYS: ledger
ARGV: now lease_ms seen_ms how | per reservation: id mib state owner rest seen
Returns: ids of missing reservations
`how` is 'renew': extend only; 'change': extend, with the values given; 'enter': also enter missing ones. `seen` is the MiB
that its process was seen to use, which others use for `seen_ms`; 0: nothing.
]]
--#include _clock
--#include _ledger
local now, ahead = ledger_time(ARGV[1], redis.call('HGET', KEYS[1], 'clock'))
local how, kept, missing, reported, unreported = ARGV[4], {}, {}, {}, {}
local expiry, until_seen = whole(now + tonumber(ARGV[2])), whole(now + tonumber(ARGV[3]))
for n = 5, #ARGV, 6 do
  local name = 'r:' .. ARGV[n]
  local stored = redis.call('HGET', KEYS[1], name)
  local before = stored and reservation(stored)
  if how == 'enter' or before and before.expiry >= now then
    local start_until = before and before.start_until or 0
    local value = table.concat({ expiry, ARGV[n + 1], ARGV[n + 2], whole(start_until), ARGV[n + 3], ARGV[n + 4] }, ' ')
    if how == 'renew' then
      value = expiry .. string.match(stored, ' .*')
    elseif tonumber(ARGV[n + 5]) > 0 then
      reported[#reported + 1], reported[#reported + 2] = 'u:' .. ARGV[n], until_seen .. ' ' .. ARGV[n + 5]
    else
      unreported[#unreported + 1] = 'u:' .. ARGV[n]
    end
    kept[#kept + 1], kept[#kept + 2] = name, value
  else
    missing[#missing + 1] = ARGV[n]
  end
end
if #kept > 0 then
  begin_writing(KEYS[1], now, ahead)
  for n = 1, #kept, 2 do redis.call('HSET', KEYS[1], kept[n], kept[n + 1]) end
  for n = 1, #reported, 2 do redis.call('HSET', KEYS[1], reported[n], reported[n + 1]) end
  for _, name in ipairs(unreported) do redis.call('HDEL', KEYS[1], name) end
end
return missing
