--[[ Hold one device of the whole fleet for the tasks of one demand that have waited too long; or go on holding it.
KEYS: hold
ARGV: value lease_ms
Returns: 1 held, 0 another is
]]
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('PERSIST', KEYS[1])  -- a first write that a full memory does not refuse
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
