--[[ Read a device's ledger.
KEYS: ledger
ARGV: now
Returns: now, its fields
]]
--#include _clock
--#include _ledger
local now, ahead, is_back = ledger_time(ARGV[1], redis.call('HGET', KEYS[1], 'clock'))
if is_back then begin_writing(KEYS[1], now, ahead) end
return { whole(now), redis.call('HGETALL', KEYS[1]) }
