--[[ Delete a task that nobody runs.
KEYS: task ready suspects gpu scheduled external completed failed cancelled
ARGV: id
Returns: 1 deleted, 0 not there or running
]]
if redis.call('HEXISTS', KEYS[1], 'p') == 0 or redis.call('HGET', KEYS[1], 's') == 'processing' then return 0 end
for k = 2, #KEYS do redis.call('ZREM', KEYS[k], ARGV[1]) end
redis.call('UNLINK', KEYS[1])
return 1
