--[[ Count a queue's tasks by state.
KEYS: ready suspects scheduled leases external completed failed cancelled meta
ARGV: now prefix
Returns: now, pending scheduled processing completed failed cancelled, ms since the head of the queue became due, per GPU set its name and its number of tasks, 1 if the queue is paused, ms to the next due task or -1, how many suspects wait and how many run
Suspects that wait for a GPU are counted among the first 100 of a set; running ones only if some wait, among 1000 leases.
]]
--#include _clock
--#include _time
--#include _queue
--#include _task
local state, prefix = redis.call('HMGET', KEYS[9], 'ahead', 'reaped_at', 'paused'), ARGV[2]
local now = queue_time(clock(ARGV[1]), state[1], state[2])
local function card(key) return redis.call('ZCARD', key) end

local listed, gpu, demands, gpu_count = redis.call('HKEYS', prefix .. 'demands'), {}, {}, 0
for n, name in ipairs(listed) do
  gpu[n] = gpu_set(prefix, name)
  local count = card(gpu[n])
  gpu_count = gpu_count + count
  demands[2 * n - 1], demands[2 * n] = name, count
end

local oldest = now
for _, index in ipairs({ KEYS[1], KEYS[2], unpack(gpu) }) do
  local head = redis.call('ZRANGE', index, 0, 0)[1]
  if head then
    local task = redis.call('HMGET', prefix .. 't:' .. head, 'u', 'p')
    local due = task[1] or task[2] and string.match(task[2], '^%d+')
    if due then oldest = math.min(oldest, tonumber(due)) end
  end
end
local function count_suspects(ids)
  local count = 0
  for _, id in ipairs(ids) do
    local task = fields_of(prefix .. 't:' .. id, 'k')
    if task and is_suspect(task[1]) then count = count + 1 end
  end
  return count
end
local suspects, suspects_running = card(KEYS[2]), 0
for _, set in ipairs(gpu) do suspects = suspects + count_suspects(redis.call('ZRANGE', set, 0, 99)) end
if suspects > 0 then suspects_running = count_suspects(redis.call('ZRANGE', KEYS[4], 0, 999)) end

local later = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
local next_due = later and whole(math.max(0, later - now)) or '-1'
if later then oldest = math.min(oldest, tonumber(later)) end

return {
  whole(now),
  card(KEYS[1]) + card(KEYS[2]) + card(KEYS[3]) + gpu_count,
  redis.call('ZCOUNT', KEYS[3], string.format('(%.3f', now), '+inf'),
  card(KEYS[4]) + card(KEYS[5]),
  redis.call('ZCOUNT', KEYS[6], now, '+inf'),
  redis.call('ZCOUNT', KEYS[7], now, '+inf'),
  redis.call('ZCOUNT', KEYS[8], now, '+inf'),
  whole(now - oldest),
  demands,
  state[3] and 1 or 0,
  next_due,
  suspects,
  suspects_running,
}
