--[[ Find tasks that are in no index of their state, so that no worker and no listing finds them; put them back.
KEYS: scheduled leases external completed failed cancelled meta
ARGV: now prefix repair lease_ms result_ttl_s failed_ttl_s | ids
Returns: the ids whose tasks are in no index of their state
A pending task goes into its index. A running task gets a lease, which its worker renews or the reaper ends. A finished task is kept for its ttl_s from now, unless that is over.
]]
--#include _clock
--#include _time
--#include _time_of
--#include _queue
--#include _deadlines
--#include _try
--#include _task
--#include _lanes
--#include _parts
local scheduled, leases, external = KEYS[1], KEYS[2], KEYS[3]
local indexes = { processing = { leases }, external = { external }, completed = { KEYS[4] }, failed = { KEYS[5] }, cancelled = { KEYS[6] } }
local now, prefix, repair = queue_time_of(ARGV[1], KEYS[7]), ARGV[2], ARGV[3] == '1'
local lease_ms, result_ttl_s, failed_ttl_s = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
indexes.pending = pending_indexes(prefix, scheduled)
local wake, kinds, lanes = {}, {}, new_lanes(prefix, redis.call('HGET', KEYS[7], 'turn'))

local function ttl_of(state) return state == 'failed' and failed_ttl_s or result_ttl_s end

-- An index drops a finished task when its time is over. The hash expires by the server's clock, maybe a little later.
local function is_gone(task, state)
  return task[6] and state ~= 'pending' and tonumber(task[6]) + ttl_of(state) * 1000 <= now
end

-- The index of a task, and its score there.
local function place_of(task, state, new_names)
  if state == 'processing' then return leases, whole(now + lease_ms) end
  if state == 'external' then return external, whole(now) end
  if state ~= 'pending' then return indexes[state][1], whole(now + ttl_of(state) * 1000) end
  local head_start, demand, kind, lane = terms_of(task[1])
  local base = base_of(prefix, kind)
  wake[base] = true
  if kind ~= '' and redis.call('HEXISTS', prefix .. 'kinds', kind) == 0 then kinds[kind] = true end
  local due = tonumber(task[3] or string.match(task[1], '^%d+'))
  if due > now then return scheduled, string.format('%.4f', due) end
  local score, suspect = rank(due, head_start), is_suspect(task[4])
  local index = suspect and base .. 'suspects' or base .. 'ready'
  if demand ~= '-' then index = gpu_set_for(prefix, kind, demand_of(task[5], task[1]), new_names) end
  if lane == '' or suspect then return index, score end
  return lanes.enter(index, lane, score, 0), score
end

local noted = redis.call('HGET', KEYS[7], 'lanes')
local found, from, to, finished, emitted, new_names, has_lane = {}, {}, {}, {}, {}, {}, false
for i = 7, #ARGV do
  local id = ARGV[i]
  local task = fields_of(prefix .. 't:' .. id, 'p', 's', 'u', 'k', 'q', 'f', 'o', 'b') or {}
  local state = task[2] or 'pending'
  local is_listed = not task[1] or not indexes[state] or is_gone(task, state)
  for _, index in ipairs(not is_listed and indexes[state] or {}) do is_listed = is_listed or redis.call('ZSCORE', index, id) end
  if not is_listed and state == 'pending' then is_listed = lanes.find(id, task[1]) end
  if not is_listed then
    found[#found + 1] = id
    for _, others in pairs(repair and indexes or {}) do
      for _, index in ipairs(others) do append(from, index, id) end
    end
    if repair then
      local _, _, _, lane = terms_of(task[1])
      if lane ~= '' and state == 'pending' then
        has_lane = true
        -- Its tenant has counted it before its entry was lost, unless the count is lost, too.
        lanes.count(lane, redis.call('HEXISTS', prefix .. 'waiting', tenant_of(lane)) == 1 and 0 or 1)
      end
      local index, score = place_of(task, state, new_names)
      append(to, index, score, id)
      local expiry = state == 'pending' and expiry_of(task[7])
      if expiry then append(to, prefix .. 'deadlines', whole(expiry), id) end
      if state ~= 'pending' and state ~= 'processing' and state ~= 'external' then
        finished[id], emitted[id] = ttl_of(state), task[8]
      end
    end
  end
end

if #found > 0 and repair then
  redis.call('ZREM', leases, '')
  if has_lane then try_lanes(prefix, KEYS[7]) end
  try_indexes(from, to)
  redis.call('EXPIRE', prefix .. 'never', 1)
  list_gpu_sets(prefix, new_names)
  for kind in pairs(kinds) do redis.call('HSET', prefix .. 'kinds', kind, '') end
  remove_all(from)
  add_all(to)
  if has_lane then
    lanes.write(KEYS[7], noted)
    local counts = {}
    for _, member in ipairs(redis.call('ZRANGE', prefix .. 'lanes', 0, -1)) do
      local index = parts_of_key(member)
      counts[index] = (counts[index] or 0) + redis.call('ZCARD', prefix .. member)
    end
    for index, count in pairs(counts) do redis.call('HSET', prefix .. 'laned', index, count) end
  end
  for id, ttl_s in pairs(finished) do
    redis.call('EXPIRE', prefix .. 't:' .. id, ttl_s)
    if emitted[id] then expire_emitted(prefix, id, ttl_s) end
  end
  wake_bases(wake, wake)
end
return found
