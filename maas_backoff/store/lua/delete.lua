--[[ Delete tasks that no worker runs.
KEYS: scheduled external completed failed cancelled watched call meta
ARGV: prefix call_ms | per task: id state token
Returns: per task 1 deleted, 0 not there, running, or not in this state under this token
An empty state means any, an empty token, too.
An operation, with a `call` of its own: a repeated call gets the same answers for call_ms, and deletes no task that was created anew.
]]
--#include _call
--#include _queue
--#include _task
--#include _lanes
--#include _try
--#include _parts
--#include _watched
local scheduled, watched, call, meta = KEYS[1], KEYS[6], KEYS[7], KEYS[8]
local prefix, never = ARGV[1], ARGV[1] .. 'never'
local from, gone, emissions, answers, lanes, indexes_of = {}, {}, {}, {}, nil, {}
local unfinished = 0
local stored_answer = answered_before(call)
if stored_answer then
  for answer in string.gmatch(stored_answer, '%d') do answers[#answers + 1] = tonumber(answer) end
  return answers
end

-- The indexes, other than lanes, in which a pending task may wait.
local function indexes_for(kind, demand)
  local name = kind .. (demand == '-' and ' -' or '')
  if indexes_of[name] then return indexes_of[name] end
  local base = base_of(prefix, kind)
  local found = { scheduled, base .. 'ready', base .. 'suspects', prefix .. 'deadlines' }
  for _, set in ipairs(demand == '-' and {} or redis.call('HKEYS', prefix .. 'demands')) do
    if parts_of(set) == kind then found[#found + 1] = gpu_set(prefix, set) end
  end
  indexes_of[name] = found
  return found
end

local function leave_pending(id, created)
  local _, demand, kind, lane = terms_of(created)
  for _, index in ipairs(indexes_for(kind, demand)) do append(from, index, id) end
  if lane == '' then return end
  lanes = lanes or new_lanes(prefix, false)
  lanes.count(lane, -1)
  local key, index = lanes.find(id, created)
  if key then
    append(from, key, id)
    lanes.remove(index, lane)
  end
end

for i = 3, #ARGV, 3 do
  local id, state, token = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local task = fields_of(prefix .. 't:' .. id, 'p', 's', 't', 'b') or {}
  local is_state, is_token = task[2] or 'pending', task[3] or '0'
  local may = task[1] and is_state ~= 'processing' and (state == '' or state == is_state) and (token == '' or token == is_token)
  answers[#answers + 1] = may and 1 or 0
  if may then
    gone[#gone + 1], emissions[id] = id, task[4]
    for k = 2, 5 do append(from, KEYS[k], id) end
    if is_state == 'pending' or is_state == 'external' then unfinished = unfinished + 1 end
    if is_state == 'pending' then leave_pending(id, task[1]) end
  end
end
-- Each command is tried before the first real write. While a Cluster moves the queue, it refuses a key that does not
-- exist, and some of these may be moved already.
redis.call('ZCARD', never)
redis.call('ZREM', never, '')
try_indexes(from, {})
redis.call('HKEYS', prefix .. 'demands')
redis.call('EXPIRE', never, 1)
redis.call('HDEL', never, '')
redis.call('UNLINK', never)
if lanes then try_lanes(prefix, meta) end
keep_answer(call, table.concat(answers), math.ceil(ARGV[2] / 1000))
if not gone[1] then return answers end
remove_all(from)
if lanes then lanes.write(meta, '2') end
for _, id in ipairs(gone) do unlink_task(prefix, id, emissions[id]) end
if unfinished > 0 then redis.pcall('HINCRBY', meta, 'removed', unfinished) end
unlist_empty_gpu_sets(prefix)
publish_changed(prefix, watched, gone)
return answers
