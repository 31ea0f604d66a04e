--[[ Create tasks. An id that exists is left alone.
KEYS: scheduled policies meta
ARGV: now prefix policy policy_text max_queue_size max_tenant_queue_size all_or_none groups | per group: record when overrides count, and per task of it: id params
Returns: 'policy' when its text must be sent too, or 'kinds' when the queue has 200 other kinds, nothing done; else per task 'created', 'exists', 'conflict' or 'full', and if any is 'full', the size and ms until there may be room; 'crowded' for tasks of a tenant that has too many waiting ones
If the queue has no room for all new tasks, all_or_none '1' creates none of them, and '0' the first ones.
`record` is the creation's line in _queue.lua without the time; `when` is '' (now), 'in <ms>' or 'at <ms>'.
The first write is a ZADD of a marker, which is a hint: a full memory or a missing right refuses the whole call there.
]]
--#include _lone_create
--#include _clock
--#include _time
--#include _queue
--#include _lanes
--#include _deadlines
--#include _arrivals
--#include _schema
local scheduled, policies, meta = KEYS[1], KEYS[2], KEYS[3]
local prefix, policy, policy_text = ARGV[2], ARGV[3], ARGV[4]
local max_size, max_tenant_size = tonumber(ARGV[5]), tonumber(ARGV[6])
local all_or_none, groups = ARGV[7] == '1', tonumber(ARGV[8])

if redis.call('HEXISTS', policies, policy) == 0 and policy_text == '' then return 'policy' end

-- Read: the kinds of the tasks that the queue does not know yet.
local new_kinds, new_count, closed, batches = {}, 0, {}, {}
local function is_known(kind)
  if new_kinds[kind] then return true end
  local paused_at = redis.call('HGET', prefix .. 'kinds', kind)
  if not is_open(paused_at) then closed[base_of(prefix, kind)] = true
  elseif paused_at and paused_at ~= '' then batches[kind] = { waits = paused_at, count = 0, cost = 0 } end
  if paused_at then return true end
  new_kinds[kind], new_count = true, new_count + 1
  return redis.call('HLEN', prefix .. 'kinds') + new_count <= MOST_KINDS
end

-- Read: the tasks that exist. New ones: the places of their id and their group in ARGV, and the number of their answer.
local tasks, answers, params_of, kind_of, again, delayed, i = prefix .. 't:', {}, {}, {}, {}, false, 9
local at, group_of, nth, lane_of_group = {}, {}, {}, {}
for _ = 1, groups do
  local group = i
  delayed = delayed or ARGV[group + 1] ~= ''
  local kind, lane = string.match(ARGV[group], '^%S+ %S+ %S+ %S+ (%S+) ?(%S*)')
  if lane and lane ~= '' then lane_of_group[group] = lane end
  if kind and kind ~= '-' and not is_known(kind) then return 'kinds' end
  local own_kind = kind and kind ~= '-' and kind or ''
  i = i + 4
  for _ = 1, tonumber(ARGV[group + 3]) do
    local id, params, n, new = ARGV[i], ARGV[i + 1], #answers + 1, #at + 1
    local known, known_kind = params_of[id], kind_of[id]
    if known then
      again[n] = id
    else
      local stored = redis.call('HGET', tasks .. id, 'p')
      if stored then
        local _, _, stored_kind = terms_of(stored)
        known, known_kind = string.sub(stored, (string.find(stored, '\n', 1, true) or 0) + 1), stored_kind
      end
    end
    if known then
      answers[n] = known == params and known_kind == own_kind and 'exists' or 'conflict'
    else
      kind_of[id] = own_kind
      answers[n], params_of[id], at[new], group_of[new], nth[new] = 'created', params, i, group, n
    end
    i = i + 2
  end
end
if #at == 0 then return answers end

local state = redis.call('HMGET', meta, 'paused', 'ahead', 'reaped_at', 'lanes', 'turn')
local paused, ahead = state[1], state[2] and tonumber(state[2]) or 0
local now = queue_time(clock(ARGV[1]), ahead, state[3])

-- Leaves out tasks of tenants that have too many waiting ones. Returns how many tasks are left.
local function without_crowded()
  local room, kept, group, tenant = {}, 0, nil, nil
  local refused = {}
  for n = 1, #at do
    if group_of[n] ~= group then
      group = group_of[n]
      tenant = tenant_of(lane_of_group[group] or '')
      if tenant ~= '' and not room[tenant] then
        room[tenant] = max_tenant_size - tonumber(redis.call('HGET', prefix .. 'waiting', tenant) or 0)
      end
    end
    if tenant ~= '' then room[tenant] = room[tenant] - 1 end
    if tenant ~= '' and room[tenant] < 0 then
      answers[nth[n]], refused[ARGV[at[n]]] = 'crowded', true
      if all_or_none then return 0 end
    else
      kept = kept + 1
      at[kept], group_of[kept], nth[kept] = at[n], group_of[n], nth[n]
    end
  end
  for n = kept + 1, #at do at[n], group_of[n], nth[n] = nil, nil, nil end
  for n, id in pairs(again) do
    if refused[id] then answers[n] = 'crowded' end
  end
  return kept
end
if max_tenant_size > 0 and next(lane_of_group) and without_crowded() == 0 then return answers end

if max_size > 0 then
  local size = 0
  for _, index in ipairs(pending_indexes(prefix, scheduled)) do size = size + redis.call('ZCARD', index) end
  size = size + redis.call('ZCARD', prefix .. 'leases') + redis.call('ZCARD', prefix .. 'external')
  if state[4] then size = size + count_in_lanes(prefix) end
  local excess = size + #at - max_size
  if excess > 0 then
    local refused = {}
    for n = #at, all_or_none and 1 or math.max(1, #at - excess + 1), -1 do
      answers[nth[n]], refused[ARGV[at[n]]], at[n] = 'full', true, nil
    end
    for n, id in pairs(again) do
      if refused[id] then answers[n] = 'full' end
    end
    local pace = tonumber(redis.call('HGET', meta, 'pace') or 0)  -- tasks finished per ms, by reap.lua
    local wait = pace > 0 and excess / pace or 10000
    answers[#answers + 1] = whole(size)
    answers[#answers + 1] = whole(math.max(1000, math.min(wait, 300000)))
    if #at == 0 then return answers end
  end
end

local function due_of(when)
  if when == '' then return now end
  local kind, ms = string.match(when, '^(%a+) (.+)$')
  -- A moment is by the server's clock, as users see it.
  return math.max(now, (kind == 'in' and now or ahead) + ms)
end

local head_due, head_kind
if delayed then head_due, head_kind = head_of(prefix, scheduled) end

-- Try: ZADD comes before the first HSET, so that a missing right to either leaves nothing done. The ZADD of a marker
-- serves for this if there is one to add. The commands that read GPU sets below were called before, too.
local wake, wake_gpu = {}, {}
local only = groups == 1 and not delayed and group_of[1]
local is_woken = only and not paused and not string.find(ARGV[only], ' ', 1, true)
if not is_woken or type(redis.pcall('ZADD', prefix .. 'marker', 0, '0')) == 'table' then
  redis.call('ZADD', prefix .. 'never', 'XX', 0, '')
  redis.call('HLEN', prefix .. 'demands')
end

-- Read: the lanes of the tasks.
local indexes, new_names, lanes = {}, nil, nil
if next(lane_of_group) then
  lanes, new_names = new_lanes(prefix, state[5]), {}
  for n = 1, #at do
    local group = group_of[n]
    local lane = group ~= group_of[n - 1] and lane_of_group[group]
    if lane then
      local due, head_start, demand, kind = due_of(ARGV[group + 1]), terms_of('0 ' .. ARGV[group] .. '\n')
      local index = demand == '-' and base_of(prefix, kind) .. 'ready' or gpu_set_for(prefix, kind, demand, new_names)
      if due <= now then lanes.enter(index, lane, rank(due, head_start), 0) end
    end
  end
  try_lanes(prefix, meta)
end

local group, line, due, head_start, demand, kind, lane, base, index, fields, expiry
for n = 1, #at do
  local id, params = ARGV[at[n]], ARGV[at[n] + 1]
  if group_of[n] ~= group then
    group = group_of[n]
    line, due = whole(now) .. ' ' .. ARGV[group] .. '\n', due_of(ARGV[group + 1])
    head_start, demand, kind, lane = terms_of(line)
    base = base_of(prefix, kind)
    fields = ARGV[group + 2] ~= '' and { 'o', with_deadlines_from(due, ARGV[group + 2]) } or {}
    expiry = expiry_of(fields[2])
    if due > now then
      fields[#fields + 1] = 'u'
      fields[#fields + 1] = whole(due)
      index = scheduled
      if due < head_due or kind ~= head_kind then wake[base] = true end
    elseif demand == '-' then
      index = base .. 'ready'
      wake[base] = true
    else
      new_names = new_names or {}
      index = gpu_set_for(prefix, kind, demand, new_names)
      wake_gpu[base] = true
    end
  end
  redis.call('HSET', tasks .. id, 'p', line .. params, unpack(fields))
  if expiry then append(indexes, prefix .. 'deadlines', whole(expiry), id) end
  -- In the order of the arguments.
  local turn = due + (n - 1) / 4096
  local score, key = index == scheduled and string.format('%.4f', turn) or rank(turn, head_start), index
  if lane ~= '' then
    lanes.count(lane, 1)
    if index ~= scheduled then key = lanes.enter(index, lane, score, 1) end
  end
  append(indexes, key, score, id)
  if batches[kind] and index ~= scheduled then note_arrival(batches[kind], line) end
end
for key, args in pairs(indexes) do
  local answer = redis.pcall('ZADD', key, unpack(args))
  if type(answer) == 'table' then
    -- An index of another type: undo, so that none of these tasks exists.
    for n = 1, #at do redis.call('UNLINK', tasks .. ARGV[at[n]]) end
    for other, entered in pairs(indexes) do
      for n = 2, #entered, 2 do redis.pcall('ZREM', other, entered[n]) end
    end
    error(answer.err, 0)
  end
end
if lanes then lanes.write(meta, state[4]) end
if new_names then list_gpu_sets(prefix, new_names) end
for kind in pairs(new_kinds) do redis.call('HSET', prefix .. 'kinds', kind, '') end
if policy_text ~= '' then
  redis.call('HSET', policies, policy, policy_text)
  if not redis.call('HGET', meta, 'schema') then redis.call('HSET', meta, 'schema', SCHEMA) end
end
for kind, batch in pairs(batches) do
  if not has_enough(prefix, kind, batch, now) then closed[base_of(prefix, kind)] = true end
end
if not paused then
  if is_woken then wake[prefix] = nil end
  wake_bases(wake, wake_gpu, closed)
end
return answers
