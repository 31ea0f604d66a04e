--[[ Delete a task that no worker runs.
KEYS: task scheduled external completed failed cancelled watched call meta
ARGV: prefix id call_ms
Returns: 1 deleted, 0 not there or running
An operation, with a `call` of its own: a repeated call gets the same answer for call_ms, and deletes no task that was created anew.
]]
--#include _call
--#include _queue
--#include _lanes
--#include _try
--#include _parts
--#include _watched
local prefix, id, call, never = ARGV[1], ARGV[2], KEYS[8], ARGV[1] .. 'never'
local stored_answer = answered_before(call)
if stored_answer then return tonumber(stored_answer) end
local from = {}
for k = 3, 6 do append(from, KEYS[k], id) end
append(from, prefix .. 'deadlines', id)
for _, index in ipairs(pending_indexes(prefix, KEYS[2])) do append(from, index, id) end
local task = redis.call('HMGET', KEYS[1], 'p', 's', 'b')
local may = task[1] and task[2] ~= 'processing'
local lanes = leave_lane(prefix, id, task, from)
-- Each command is tried before the first real write. While a Cluster moves the queue, it refuses a key that does not
-- exist, and some of these may be moved already.
redis.call('ZCARD', never)
try_indexes(from, {})
redis.call('EXPIRE', never, 1)
redis.call('HDEL', never, '')
redis.call('UNLINK', never)
if lanes then try_lanes(prefix, KEYS[9]) end
keep_answer(call, may and '1' or '0', math.ceil(ARGV[3] / 1000))
if not may then return 0 end
remove_all(from)
if lanes then lanes.write(KEYS[9], '2') end
unlink_task(prefix, id, task[3])
local was = task[2] or 'pending'
if was == 'pending' or was == 'external' then redis.pcall('HINCRBY', KEYS[9], 'removed', 1) end
unlist_empty_gpu_sets(prefix)
publish_changed(prefix, KEYS[7], { id })
return 1
