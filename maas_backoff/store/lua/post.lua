--[[ Note on a device's ledger, for a while, that the device is held or that room is needed; unless another value stands there.
KEYS: ledger
ARGV: now field lease_ms value
Returns: 1 written, 0 another value stands there
]]
--#include _clock
--#include _ledger
local now, ahead = ledger_time(ARGV[1], redis.call('HGET', KEYS[1], 'clock'))
local before = redis.call('HGET', KEYS[1], ARGV[2])
if before and until_of(before) > now and string.match(before, '^%d+ (.*)$') ~= ARGV[4] then return 0 end
begin_writing(KEYS[1], now, ahead)
redis.call('HSET', KEYS[1], ARGV[2], whole(now + ARGV[3]) .. ' ' .. ARGV[4])
return 1
