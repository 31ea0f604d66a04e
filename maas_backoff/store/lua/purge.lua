--[[ Delete the first `limit` tasks of one state.
KEYS: meta watched call | the indexes of the state
ARGV: prefix status limit call_ms
Returns: how many were deleted, 1 if there may be more
`status` is pending, completed, failed or cancelled. A task whose hash has another state is left alone.
An operation, with a `call` of its own: a repeated call gets the same answer for call_ms, and deletes no further tasks.
]]
--#include _call
--#include _queue
--#include _lanes
--#include _task
--#include _parts
--#include _watched
local watched, call, prefix, status, limit = KEYS[2], KEYS[3], ARGV[1], ARGV[2], tonumber(ARGV[3])
local stored_answer = answered_before(call)
if stored_answer then
  local number, more = string.match(stored_answer, '^(%d+) (%d)$')
  return { tonumber(number), tonumber(more) }
end
local from, gone, emitted, listed, never, lanes = {}, {}, {}, 0, prefix .. 'never', nil
for k = 4, #KEYS do
  local wanted = limit - listed
  local ids = redis.call('ZRANGE', KEYS[k], 0, wanted - 1)
  for _, id in ipairs(ids) do
    listed = listed + 1
    append(from, KEYS[k], id)
    local task = fields_of(prefix .. 't:' .. id, 's', 'p', 'b')
    if task and task[2] and (task[1] or 'pending') == status then gone[#gone + 1], emitted[id] = id, task[3] end
    if status == 'pending' then
      append(from, prefix .. 'deadlines', id)
      local _, _, _, lane = terms_of(task and task[2] or '')
      if lane ~= '' then
        lanes = lanes or new_lanes(prefix, false)
        lanes.count(lane, -1)
      end
      local index, own = parts_of_key(KEYS[k])
      if index then
        lanes = lanes or new_lanes(prefix, false)
        lanes.remove(index, own)
      end
    end
  end
  if listed >= limit then break end
end
-- Each command is tried before the first real write. While a Cluster moves the queue, it refuses a key that does not
-- exist, and some of these may be moved already.
redis.call('HDEL', KEYS[1], '')
redis.call('ZCARD', prefix .. 'deadlines')
redis.call('HKEYS', prefix .. 'demands')
redis.call('ZCARD', never)
redis.call('ZREM', never, '')
redis.call('EXPIRE', never, 1)
redis.call('UNLINK', never)
if lanes then try_lanes(prefix, KEYS[1]) end
local more = listed >= limit and 1 or 0
keep_answer(call, #gone .. ' ' .. more, math.ceil(ARGV[4] / 1000))
remove_all(from)
if lanes then lanes.write(KEYS[1], '2') end
for _, id in ipairs(gone) do unlink_task(prefix, id, emitted[id]) end
if status == 'pending' and #gone > 0 then redis.pcall('HINCRBY', KEYS[1], 'removed', #gone) end
unlist_empty_gpu_sets(prefix)
publish_changed(prefix, watched, gone)
return { #gone, more }
