--[[ Take a worker off the registry; wake another in case this one held a wake-up.
KEYS: workers info marker ready scheduled demands gpu_marker
ARGV: worker
Returns: nothing
]]
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('UNLINK', KEYS[2])
if redis.call('EXISTS', KEYS[4], KEYS[5]) > 0 then redis.call('ZADD', KEYS[3], 0, '0') end
if redis.call('EXISTS', KEYS[6]) > 0 then redis.call('ZADD', KEYS[7], 0, '0') end
