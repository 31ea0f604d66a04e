--[[ Delete a task that nobody runs.
KEYS: task ready suspects scheduled external completed failed cancelled watched
ARGV: prefix id
Returns: 1 deleted, 0 not there or running
]]
--#include _queue
--#include _watched
local prefix, id = ARGV[1], ARGV[2]
-- Before the first write: while a Cluster moves the queue, a key that never is is refused, and some of these may be gone.
redis.call('ZCARD', prefix .. 'never')
local sets = gpu_sets(prefix)
if redis.call('HEXISTS', KEYS[1], 'p') == 0 or redis.call('HGET', KEYS[1], 's') == 'processing' then return 0 end
for k = 2, #KEYS - 1 do redis.call('ZREM', KEYS[k], id) end
for _, set in ipairs(sets) do redis.call('ZREM', set, id) end
redis.call('UNLINK', KEYS[1])
unlist_empty_gpu_sets(prefix)
publish_changed(prefix, KEYS[9], { id })
return 1
