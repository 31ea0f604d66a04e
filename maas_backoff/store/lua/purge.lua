--[[ Delete the tasks of one state, the first so many of them.
KEYS: meta watched | the indexes of the state
ARGV: prefix status limit
Returns: how many were deleted, 1 if there may be more
`status` is pending, completed, failed or cancelled. A task whose hash says something else is left alone.
]]
--#include _queue
--#include _task
--#include _watched
local watched, prefix, status, limit = KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])
-- Before the first write: while a Cluster moves the queue, a key that never is is refused, and some of these may be gone.
redis.call('ZCARD', prefix .. 'never')
local from, gone, listed = {}, {}, 0
for k = 3, #KEYS do
  for _, id in ipairs(redis.call('ZRANGE', KEYS[k], 0, limit - listed - 1)) do
    listed = listed + 1
    append(from, KEYS[k], id)
    local task = fields_of(prefix .. 't:' .. id, 's', 'p')
    if task and task[2] and (task[1] or 'pending') == status then gone[#gone + 1] = id end
  end
  if listed >= limit then break end
end
redis.call('HDEL', KEYS[1], '')
remove_all(from)
for _, id in ipairs(gone) do redis.call('UNLINK', prefix .. 't:' .. id) end
unlist_empty_gpu_sets(prefix)
publish_changed(prefix, watched, gone)
return { #gone, listed >= limit and 1 or 0 }
