--[[ Create tasks. An id that exists is left alone.
KEYS: ready gpu scheduled marker policies suspects leases external meta
ARGV: now prefix policy policy_text max_queue_size | per task: id params record head_start when overrides
Returns: 'policy' when its text must be sent too, nothing done; {'full', size, ms until there may be room}, nothing done; else per task 'created', 'exists' or 'conflict'
`record` is "priority policy head_start_ms class", `when` is '' (now), 'in <ms>' or 'at <ms>'.
The first write is an HSET: a server whose memory is full refuses the whole call.
]]
--#include _clock
--#include _queue
local ready, gpu, scheduled, marker, policies = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local suspects, leases, external, meta = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local now, prefix, policy, policy_text, max_size = clock(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])

if policy_text == '' and redis.call('HEXISTS', policies, policy) == 0 then return 'policy' end

local answers, created, params_of = {}, {}, {}
for i = 6, #ARGV, 6 do
  local id, params = ARGV[i], ARGV[i + 1]
  local known = params_of[id] or redis.call('HGET', prefix .. 't:' .. id, 'p')
  if not known then
    answers[#answers + 1] = 'created'
    created[#created + 1] = i
    params_of[id] = params
  else
    answers[#answers + 1] = known == params and 'exists' or 'conflict'
  end
end
if #created == 0 then return answers end

if max_size > 0 then
  local size = 0
  for _, index in ipairs({ ready, suspects, gpu, scheduled, leases, external }) do
    size = size + redis.call('ZCARD', index)
  end
  local excess = size + #created - max_size
  if excess > 0 then
    local pace = tonumber(redis.call('HGET', meta, 'pace') or 0)  -- tasks finished per ms, by reap.lua
    local wait = pace > 0 and excess / pace or 10000
    return { 'full', whole(size), whole(math.max(1000, math.min(wait, 300000))) }
  end
end

local function due_of(when)
  if when == '' then return now end
  local kind, ms = string.match(when, '^(%a+) (.+)$')
  return math.max(now, kind == 'in' and now + ms or tonumber(ms))
end

local earliest = redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')[2]
local next_due = earliest and tonumber(earliest) or math.huge
if policy_text ~= '' then redis.call('HSET', policies, policy, policy_text) end

local indexes, wake = {}, false
for n, i in ipairs(created) do
  local id, record, head_start, overrides = ARGV[i], ARGV[i + 2], ARGV[i + 3], ARGV[i + 5]
  local due = due_of(ARGV[i + 4])
  local fields = { 'p', ARGV[i + 1], 'c', whole(now) .. ' ' .. record }
  if overrides ~= '' then
    fields[#fields + 1] = 'o'
    fields[#fields + 1] = overrides
  end
  local later = due > now
  if later then
    fields[#fields + 1] = 'u'
    fields[#fields + 1] = whole(due)
  end
  redis.call('HSET', prefix .. 't:' .. id, unpack(fields))
  due = due + (n - 1) / 4096
  if later then
    append(indexes, scheduled, string.format('%.4f', due), id)
    wake = wake or due < next_due
  elseif string.sub(record, -1) ~= '-' then
    append(indexes, gpu, rank(due, tonumber(head_start)), id)
  else
    append(indexes, ready, rank(due, tonumber(head_start)), id)
    wake = true
  end
end
add_all(indexes)
if wake then redis.call('ZADD', marker, 0, '0') end
return answers
