--[[ Return the tasks that wait for a GPU, by their demand, and the first of each demand.
KEYS: demands hold meta
ARGV: now prefix suspicion kinds
Returns: now, rank of the first ready task or '', the hold ("name uuid worker") or '', and per demand: name of its set, demand, rank of the first, ms since it was due, the device to avoid or '', 1 if it is a suspect
Tasks of the worker's `kinds` only: see settle.lua. A paused queue, or kind, has no demand. A suspect that may not be claimed is left out, else memory would be reserved for it. If several demands share a set, each demand among its first 1,000 tasks is returned, at most 64.
]]
--#include _clock
--#include _time
--#include _queue
--#include _task
--#include _suspects
--#include _lanes
local state, prefix = redis.call('HMGET', KEYS[3], 'ahead', 'reaped_at', 'paused', 'lanes'), ARGV[2]
local now = queue_time(clock(ARGV[1]), state[1], state[2])
local rows, rule = {}, suspicion_of(ARGV[3])
local bases, ours, listed = open_bases_of(prefix, ARGV[4]), {}, {}
for _, base in ipairs(bases) do ours[base] = true end
for _, name in ipairs(state[3] and {} or redis.call('HKEYS', KEYS[1])) do
  if ours[base_of(prefix, (parts_of(name)))] then listed[#listed + 1] = name end
end

-- Whether a task that waits outside of lanes is of a paused tenant: a suspect.
local function is_held(task)
  if not state[4] or not is_suspect(task[4]) then return false end
  local _, _, _, lane = terms_of(task[2] or '')
  local _, paused = settings_of(lane ~= '' and redis.call('HGET', prefix .. 'tenants', tenant_of(lane)))
  return paused
end

-- Adds the first task of each demand that is not `seen` yet to the rows.
local function add_first(name, ids, seen)
  for n = 1, #ids, 2 do
    local task = fields_of(prefix .. 't:' .. ids[n], 'u', 'p', 'q', 'k', 'c') or {}
    -- A task whose hash is gone or of another type has no demand. The next claim drops it.
    local _, own = parts_of(name)
    local demand = not is_shared(name) and own or task[2] and demand_of(task[3], task[2]) or '0:0'
    if not seen[demand] and rule.may_claim(ids[n], task[4], task[5]) and not is_held(task) then
      seen[demand], seen.count = true, seen.count + 1
      local due = task[1] or task[2] and string.match(task[2], '^%d+') or now
      local avoid = task[3] and string.match(task[3], '^%S+ (%S+)') or ''
      rows[#rows + 1] = { name, demand, ids[n + 1], whole(now - due), avoid, is_suspect(task[4]) and 1 or 0 }
      if demand == own then break end
    end
  end
end

-- A set that many demands share is searched, so that large tasks in front do not hide a small one that fits.
local MOST_DEMANDS = 64

-- The first tasks of open lanes, of the tenants whose turn is next.
local MOST_HEADS = 20

local function add_heads(name, seen)
  local index = gpu_set(prefix, name)
  for _, tenant in ipairs(redis.call('ZRANGE', turns_key(index), 0, MOST_HEADS - 1)) do
    local keys = { lane_key(index, tenant) }
    for n, lane in ipairs(redis.call('ZRANGE', limited_key(index, tenant), 0, MOST_HEADS - 1)) do
      keys[n + 1] = lane_key(index, lane)
    end
    for _, key in ipairs(keys) do
      add_first(name, redis.call('ZRANGE', key, 0, is_shared(name) and STEP - 1 or 0, 'WITHSCORES'), seen)
      if seen.count > 0 and not is_shared(name) or seen.count >= MOST_DEMANDS then return end
    end
  end
end

for _, name in ipairs(listed) do
  local most, seen = is_shared(name) and MOST_DEMANDS or 1, { count = 0 }
  if state[4] then add_heads(name, seen) end
  local first, last = 0, most == 1 and 0 or STEP - 1
  repeat
    local ids = redis.call('ZRANGE', gpu_set(prefix, name), first, last, 'WITHSCORES')
    local is_end = #ids < 2 * (last - first + 1)
    first, last = last + 1, last + STEP
    add_first(name, ids, seen)
  until seen.count >= most or is_end or first >= MOST_PASSED
end
local first_ready
for _, base in ipairs(bases) do
  local score = tonumber(redis.call('ZRANGE', base .. 'ready', 0, 0, 'WITHSCORES')[2])
  local tenant = state[4] and redis.call('ZRANGE', turns_key(base .. 'ready'), 0, 0)[1]
  local head = tenant and redis.call('ZRANGE', lane_key(base .. 'ready', tenant), 0, 0, 'WITHSCORES')[2]
  if head and (not score or tonumber(head) < score) then score = tonumber(head) end
  if score and (not first_ready or score < first_ready) then first_ready = score end
end
local held = redis.call('GET', KEYS[2]) or ''
if (tonumber(string.match(held, '^%d+')) or 0) <= now then held = '' end
return { whole(now), first_ready and whole(first_ready) or '', string.match(held, '^%S+ (.*)$') or '', rows }
