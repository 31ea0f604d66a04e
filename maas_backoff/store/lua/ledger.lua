--[[ Read a device's ledger.
KEYS: ledger
ARGV: now
Returns: now, its fields
]]
--#include _clock
return { whole(clock(ARGV[1])), redis.call('HGETALL', KEYS[1]) }
