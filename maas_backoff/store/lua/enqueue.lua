--[[ Create tasks. An id that exists is left alone.
KEYS: ready scheduled marker policies meta
ARGV: now prefix policy policy_text max_queue_size groups | per group: record when overrides count, and per task of it: id params
Returns: 'policy' when its text must be sent too, nothing done; {'full', size, ms until there may be room, ids that are there already}, nothing done; else per task 'created', 'exists' or 'conflict'
`record` is what _queue.lua says, without the time; `when` is '' (now), 'in <ms>' or 'at <ms>'.
The first write is a ZADD of nothing to each index: what is refused, by a server whose memory is full or for want of a right, is refused as a whole.
]]
--#include _clock
--#include _time
--#include _queue
--#include _schema
--#include _wake
local ready, scheduled, marker, policies, meta = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local prefix, policy, policy_text = ARGV[2], ARGV[3], ARGV[4]
local max_size, groups = tonumber(ARGV[5]), tonumber(ARGV[6])

if policy_text == '' and redis.call('HEXISTS', policies, policy) == 0 then return 'policy' end

local tasks = prefix .. 't:'
local answers, created, there, params_of, delayed, i = {}, {}, {}, {}, false, 7
for _ = 1, groups do
  local group = i
  delayed = delayed or ARGV[group + 1] ~= ''
  i = i + 4
  for _ = 1, tonumber(ARGV[group + 3]) do
    local id, params = ARGV[i], ARGV[i + 1]
    local known = params_of[id]
    if not known then
      local stored = redis.call('HGET', tasks .. id, 'p')
      known = stored and string.sub(stored, (string.find(stored, '\n', 1, true) or 0) + 1)
      if known == params then there[#there + 1] = id end
    end
    if not known then
      answers[#answers + 1] = 'created'
      created[#created + 1] = i
      created[#created + 1] = group
      params_of[id] = params
    else
      answers[#answers + 1] = known == params and 'exists' or 'conflict'
    end
    i = i + 2
  end
end
if #created == 0 then return answers end

local state = redis.call('HMGET', meta, 'paused', 'ahead', 'reaped_at', 'schema', 'pace')
local paused, ahead = state[1], tonumber(state[2] or 0) or 0
local now = queue_time(clock(ARGV[1]), ahead, state[3])

if max_size > 0 then
  local size = 0
  for _, index in ipairs({ 'ready', 'suspects', 'scheduled', 'leases', 'external' }) do
    size = size + redis.call('ZCARD', prefix .. index)
  end
  for _, index in ipairs(gpu_sets(prefix)) do size = size + redis.call('ZCARD', index) end
  local excess = size + #created / 2 - max_size
  if excess > 0 then
    local pace = tonumber(state[5] or 0)  -- tasks finished per ms, by reap.lua
    local wait = pace > 0 and excess / pace or 10000
    return { 'full', whole(size), whole(math.max(1000, math.min(wait, 300000))), there }
  end
end

local function due_of(when)
  if when == '' then return now end
  local kind, ms = string.match(when, '^(%a+) (.+)$')
  -- A moment is by the clock of users.
  return math.max(now, (kind == 'in' and now or ahead) + ms)
end

local next_due = delayed and tonumber(redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')[2] or math.huge)

-- Plan: where each goes.
local indexes, wake, wake_gpu, new_names = {}, false, false, {}
local group, line, due, head_start, demand, index
for n = 1, #created, 2 do
  if created[n + 1] ~= group then
    group = created[n + 1]
    line, due = whole(now) .. ' ' .. ARGV[group] .. '\n', due_of(ARGV[group + 1])
    head_start, demand = head_start_and_demand(line)
    if due > now then
      index = scheduled
      wake = wake or due < next_due
    elseif demand == '-' then
      index = ready
      wake = true
    else
      index = gpu_set_for(prefix, demand, new_names)
      wake_gpu = true
    end
    -- What the hashes of the group have in common takes the place of what was sent of it.
    ARGV[group], ARGV[group + 1] = line, due > now and whole(due) or ''
  end
  -- In the order in which they are given.
  local turn = due + (n - 1) / 8192
  append(indexes, index, index == scheduled and string.format('%.4f', turn) or rank(turn, head_start), ARGV[created[n]])
end

try_indexes({}, indexes)
if policy_text ~= '' then redis.call('HSET', policies, policy, policy_text) end
if not state[4] then note_schema(meta) end
local fields
group = nil
for n = 1, #created, 2 do
  if created[n + 1] ~= group then
    group = created[n + 1]
    fields = ARGV[group + 2] ~= '' and { 'o', ARGV[group + 2] } or {}
    if ARGV[group + 1] ~= '' then
      fields[#fields + 1] = 'u'
      fields[#fields + 1] = ARGV[group + 1]
    end
  end
  redis.call('HSET', tasks .. ARGV[created[n]], 'p', ARGV[group] .. ARGV[created[n] + 1], unpack(fields))
end
list_gpu_sets(prefix, new_names)
add_all(indexes)
if wake and not paused then wake_with(marker) end
if wake_gpu and not paused then wake_with(prefix .. 'gpu_marker') end
return answers
