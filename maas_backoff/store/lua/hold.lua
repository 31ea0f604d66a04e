--[[ Hold one device of the whole fleet for the tasks of one demand that have waited too long; or extend the hold.
KEYS: hold meta
ARGV: now value lease_ms
Returns: 1 held, 0 another device is held
The key is "expiry_ms value": if the server's clock is set back, a time to live alone would last longer.
]]
--#include _clock
--#include _time
--#include _time_of
local now = queue_time_of(ARGV[1], KEYS[2])
local expiry, held = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (.*)$')
if held and tonumber(expiry) > now and held ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], '')  -- a first write that a full memory does not refuse
redis.call('SET', KEYS[1], whole(now + ARGV[3]) .. ' ' .. ARGV[2], 'PX', ARGV[3])
return 1
