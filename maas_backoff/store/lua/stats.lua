--[[ Count a queue's tasks by state.
KEYS: scheduled leases external completed failed cancelled meta
ARGV: now prefix
Returns: now and the difference of the queue's clock, pending scheduled processing completed failed cancelled, ms since the first task that needs no GPU became due, per GPU set its name and its number of tasks, since when the queue is paused or 0, ms to the next due task or -1, how many suspects wait and how many run, per kind its name and its number of due tasks that need no GPU, per paused kind its name and since when, how many tenants have waiting tasks, per paused tenant (1,000 or a few more) its name and since when and its number of waiting tasks, for how many limits tasks wait, how many limits are set or closed, per GPU set the ms since its first task became due, how many tasks were created of all time, fields of `paused_by` and who paused in turn
A pending task whose deadline has passed counts as cancelled. Due tasks that are still in `scheduled` count for their kind and GPU set.
Suspects that wait for a GPU are counted among the first 100 of a set; running ones only if some wait, among 1000 leases.
]]
--#include _clock
--#include _time
--#include _time_of
--#include _queue
--#include _paused
--#include _paused_by
--#include _task
--#include _lanes
local state, prefix = redis.call('HMGET', KEYS[7], 'ahead', 'reaped_at', 'paused', 'lanes', 'completed', 'failed', 'cancelled', 'requeued', 'removed'), ARGV[2]
local now = queue_time(clock(ARGV[1]), state[1], state[2])
local function card(key) return redis.call('ZCARD', key) end

-- Tasks in lanes, by index.
local in_lanes = {}
if state[4] then
  local counts = redis.call('HGETALL', prefix .. 'laned')
  for n = 1, #counts, 2 do in_lanes[prefix .. counts[n]] = tonumber(counts[n + 1]) end
end
local function count_in(index) return redis.call('ZCARD', index) + (in_lanes[index] or 0) end

local listed, gpu, demands, gpu_count, oldest = redis.call('HKEYS', prefix .. 'demands'), {}, {}, 0, {}
for n, name in ipairs(listed) do
  gpu[n] = gpu_set(prefix, name)
  local count = count_in(gpu[n])
  gpu_count, oldest[gpu[n]] = gpu_count + count, now
  demands[2 * n - 1], demands[2 * n] = name, count
end

local kinds = redis.call('HKEYS', prefix .. 'kinds')
local heads, due_count, by_kind, suspects, suspects_running = { unpack(gpu) }, gpu_count, {}, 0, 0
for n = 0, #kinds do
  local base = base_of(prefix, kinds[n] or '')
  local ready, set = base .. 'ready', base .. 'suspects'
  heads[#heads + 1], heads[#heads + 2] = ready, set
  local waiting = card(set)
  local count = count_in(ready) + waiting
  due_count, suspects = due_count + count, suspects + waiting
  if n > 0 then by_kind[2 * n - 1], by_kind[2 * n] = kinds[n], count end
end

-- Due tasks that no claim has moved out of `scheduled` yet, as while all slots are busy: each counts where it will wait.
-- If there are more than MOST_LOOKED, all others are taken to be like these.
local MOST_LOOKED = 200
local unmoved = {}
if kinds[1] or gpu[1] then unmoved = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, MOST_LOOKED) end
local counts, new_sets, most, looked = {}, {}, nil, 0
for _, id in ipairs(unmoved) do
  local task = fields_of(prefix .. 't:' .. id, 'p', 'q')
  if task and task[1] then
    local _, _, kind = terms_of(task[1])
    local demand = demand_of(task[2], task[1])
    local place = demand == '-' and kind or gpu_set_for(prefix, kind, demand, new_sets)
    counts[place], looked = (counts[place] or 0) + 1, looked + 1
    if not most or counts[place] > counts[most] then most = place end
  end
end
if #unmoved == MOST_LOOKED and most then
  local all = redis.call('ZCOUNT', KEYS[1], '-inf', now)
  local rest = math.floor(looked * all / #unmoved)
  for place, count in pairs(counts) do
    counts[place] = math.floor(count * all / #unmoved)
    rest = rest - counts[place]
  end
  counts[most] = counts[most] + rest
end
-- A set that is empty is not listed; one that several demands share may be.
for name in pairs(new_sets) do
  local set, n = gpu_set(prefix, name), #gpu + 1
  if not oldest[set] then gpu[n], demands[2 * n - 1], demands[2 * n], oldest[set] = set, name, 0, now end
end
for n, set in ipairs(gpu) do demands[2 * n] = demands[2 * n] + (counts[set] or 0) end
for n, kind in ipairs(kinds) do by_kind[2 * n] = by_kind[2 * n] + (counts[kind] or 0) end

-- The oldest due time of each GPU set, and of all other indexes together.
local OTHERS = ''
oldest[OTHERS] = now
local function look_at(key, index)
  local head = redis.call('ZRANGE', key, 0, 0)[1]
  if head then
    local task = redis.call('HMGET', prefix .. 't:' .. head, 'u', 'p')
    local due = task[1] or task[2] and string.match(task[2], '^%d+')
    local of = oldest[index] and index or OTHERS
    if due then oldest[of] = math.min(oldest[of], tonumber(due)) end
  end
end
for _, index in ipairs(heads) do look_at(index, index) end

-- Lanes may be many: those of the tenants whose turn is next in each index, and some of those that wait for limits.
local MOST_HEADS = 4
for index in pairs(in_lanes) do
  for _, tenant in ipairs(redis.call('ZRANGE', turns_key(index), 0, MOST_HEADS - 1)) do
    look_at(lane_key(index, tenant), index)
    local limited = redis.call('ZRANGE', limited_key(index, tenant), 0, 0)[1]
    if limited then look_at(lane_key(index, limited), index) end
  end
end
local shut = state[4] and redis.call('ZCARD', prefix .. 'opens') or 0
for _, limit in ipairs(shut > 0 and redis.call('ZRANGE', prefix .. 'opens', 0, MOST_HEADS - 1) or {}) do
  for _, tenant in ipairs(redis.call('ZRANGE', prefix .. 'shut:' .. limit, 0, MOST_HEADS - 1)) do
    local lane = redis.call('ZRANGE', shut_lanes_key(prefix, limit, tenant), 0, 0)[1]
    if lane then look_at(prefix .. lane, prefix .. (parts_of_key(lane) or '')) end
  end
end

local paused, pauses = paused_kinds(prefix), {}
if state[3] then pauses = { 'queue', state[3] } end
for n = 1, #paused, 2 do pauses[#pauses + 1], pauses[#pauses + 2] = 'kind ' .. paused[n], paused[n + 1] end
local found, paused_tenants = redis.call('HSCAN', prefix .. 'paused_tenants', 0, 'COUNT', 1000)[2], {}
for n = 1, #found, 2 do
  pauses[#pauses + 1], pauses[#pauses + 2] = 'tenant ' .. found[n], found[n + 1]
  paused_tenants[#paused_tenants + 1] = { found[n], found[n + 1], redis.call('HGET', prefix .. 'waiting', found[n]) or '0' }
end
local function count_suspects(ids)
  local count = 0
  for _, id in ipairs(ids) do
    local task = fields_of(prefix .. 't:' .. id, 'k')
    if task and is_suspect(task[1]) then count = count + 1 end
  end
  return count
end
for _, set in ipairs(gpu) do suspects = suspects + count_suspects(redis.call('ZRANGE', set, 0, 99)) end
if suspects > 0 then suspects_running = count_suspects(redis.call('ZRANGE', KEYS[2], 0, 999)) end

local later = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
local next_due = later and whole(math.max(0, later - now)) or '-1'
if later then oldest[OTHERS] = math.min(oldest[OTHERS], tonumber(later)) end

-- An older release leaves entries of tasks that it has taken: the first hundred are looked at.
local overdue = redis.call('ZCOUNT', prefix .. 'deadlines', '-inf', now)
for _, id in ipairs(overdue > 0 and redis.call('ZRANGEBYSCORE', prefix .. 'deadlines', '-inf', now, 'LIMIT', 0, 100) or {}) do
  local task = fields_of(prefix .. 't:' .. id, 'p', 's')
  if not task or not task[1] or (task[2] or 'pending') ~= 'pending' then overdue = overdue - 1 end
end
local gpu_ages = {}
for n, index in ipairs(gpu) do gpu_ages[n] = whole(now - oldest[index]) end

-- No create is counted, because that would cost each one. Every task is unfinished, or was finished or removed; one that
-- was taken back out of a finished state is among both.
local unfinished = card(KEYS[1]) + due_count + card(KEYS[2]) + card(KEYS[3])
local function total(n) return tonumber(state[n] or 0) or 0 end
local created = unfinished + total(5) + total(6) + total(7) - total(8) + total(9)
return {
  reply_time(now, state[1]),
  math.max(0, card(KEYS[1]) + due_count - overdue),
  redis.call('ZCOUNT', KEYS[1], string.format('(%.3f', now), '+inf'),
  card(KEYS[2]) + card(KEYS[3]),
  redis.call('ZCOUNT', KEYS[4], now, '+inf'),
  redis.call('ZCOUNT', KEYS[5], now, '+inf'),
  redis.call('ZCOUNT', KEYS[6], now, '+inf') + overdue,
  whole(now - oldest[OTHERS]),
  demands,
  tonumber(state[3]) or 0,
  next_due,
  suspects,
  suspects_running,
  by_kind,
  paused,
  redis.call('HLEN', prefix .. 'waiting') - redis.call('HEXISTS', prefix .. 'waiting', ''),
  paused_tenants,
  shut,
  redis.call('HLEN', prefix .. 'limits') + redis.call('HLEN', prefix .. 'closed'),
  gpu_ages,
  math.max(0, created),
  names_of_pauses(prefix, pauses),
}
