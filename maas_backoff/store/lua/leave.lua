--[[ Take a worker off the registry; wake another in case this one held a wake-up.
KEYS: workers info marker ready scheduled demands gpu_marker suspects
ARGV: worker
Returns: nothing
]]
--#include _wake
local for_slots, for_gpus = redis.call('EXISTS', KEYS[4], KEYS[5], KEYS[8]) > 0, redis.call('EXISTS', KEYS[6]) > 0
redis.call('ZREM', KEYS[1], '')
redis.call('UNLINK', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[1])
if for_slots then wake_with(KEYS[3]) end
if for_gpus then wake_with(KEYS[7]) end
