--[[ Create tasks. An id that exists is left alone.
KEYS: ready scheduled marker policies meta
ARGV: now prefix policy policy_text max_queue_size groups | per group: record when overrides count, and per task of it: id params
Returns: 'policy' when its text must be sent too, nothing done; {'full', size, ms until there may be room, ids that are there already}, nothing done; else per task 'created', 'exists' or 'conflict'
`record` is what _queue.lua says, without the time; `when` is '' (now), 'in <ms>' or 'at <ms>'.
The first write is an HSET: a server whose memory is full refuses the whole call.
]]
--#include _clock
--#include _queue
local ready, scheduled, marker, policies, meta = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now, prefix, policy, policy_text = clock(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
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

if max_size > 0 then
  local size = 0
  for _, index in ipairs({ 'ready', 'suspects', 'scheduled', 'leases', 'external' }) do
    size = size + redis.call('ZCARD', prefix .. index)
  end
  for _, index in ipairs(gpu_sets(prefix)) do size = size + redis.call('ZCARD', index) end
  local excess = size + #created / 2 - max_size
  if excess > 0 then
    local pace = tonumber(redis.call('HGET', meta, 'pace') or 0)  -- tasks finished per ms, by reap.lua
    local wait = pace > 0 and excess / pace or 10000
    return { 'full', whole(size), whole(math.max(1000, math.min(wait, 300000))), there }
  end
end

local function due_of(when)
  if when == '' then return now end
  local kind, ms = string.match(when, '^(%a+) (.+)$')
  return math.max(now, kind == 'in' and now + ms or tonumber(ms))
end

local paused = redis.call('HEXISTS', meta, 'paused') == 1
local next_due = delayed and tonumber(redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')[2] or math.huge)
if policy_text ~= '' then redis.call('HSET', policies, policy, policy_text) end

local indexes, wake, wake_gpu = {}, false, false
local group, line, due, head_start, demand, index, fields
for n = 1, #created, 2 do
  local id, params = ARGV[created[n]], ARGV[created[n] + 1]
  if created[n + 1] ~= group then
    group = created[n + 1]
    line, due = whole(now) .. ' ' .. ARGV[group] .. '\n', due_of(ARGV[group + 1])
    head_start, demand = head_start_and_demand(line)
    index = nil
    fields = ARGV[group + 2] ~= '' and { 'o', ARGV[group + 2] } or {}
    if due > now then
      fields[#fields + 1] = 'u'
      fields[#fields + 1] = whole(due)
      index = scheduled
      wake = wake or due < next_due
    elseif demand == '-' then
      index = ready
      wake = true
    end
  end
  redis.call('HSET', tasks .. id, 'p', line .. params, unpack(fields))
  if not index then
    index = listed_gpu_set(prefix, demand)  -- after the HSET, which a full memory refuses
    wake_gpu = true
  end
  -- In the order in which they are given.
  local turn = due + (n - 1) / 8192
  append(indexes, index, index == scheduled and string.format('%.4f', turn) or rank(turn, head_start), id)
end
add_all(indexes)
if wake and not paused then redis.call('ZADD', marker, 0, '0') end
if wake_gpu and not paused then redis.call('ZADD', prefix .. 'gpu_marker', 0, '0') end
return answers
