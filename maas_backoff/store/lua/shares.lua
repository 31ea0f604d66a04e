--[[ Read one page of the tenants or of the limits of a queue, or count tasks that wait for a limit.
KEYS: meta
ARGV: now prefix part cursor limit
Returns: now, the next cursor (0: the end), how many entries the part has, rows
`part` is the key that is read: `waiting`, `tenants` or `paused_tenants` (a row is a tenant, its number of waiting tasks, its settings, and who paused it or ''), or `limits`, `opens` or `closed` (a row is that of _shares.lua, how many lanes wait and how many tasks in them; -1 for both if they are many); or `shut:<limit>` (a row is a tenant, how many of its lanes wait and how many tasks in them, or -1); or `shut_lanes:<limit>|<tenant>`: one row with the number of tasks in a page of these lanes.
]]
--#include _clock
--#include _time
--#include _time_of
--#include _queue
--#include _lanes
--#include _shares
--#include _paused_by
local state, prefix = redis.call('HMGET', KEYS[1], 'ahead', 'reaped_at'), ARGV[2]
local now = queue_time(clock(ARGV[1]), state[1], state[2])
local part, cursor, limit = ARGV[3], ARGV[4], tonumber(ARGV[5])
local names, rows, size, following = {}, {}, 0, '0'
-- Lanes of a limit that are counted at once.
local MOST_LANES = 20

-- The members of a part of a sorted set; notes where the next page begins.
local function page_of(key)
  local first = tonumber(cursor)
  local found = redis.call('ZRANGE', key, first, first + limit - 1)
  if #found == limit then following = whole(first + limit) end
  size = redis.call('ZCARD', key)
  return found
end

-- Suspects, which wait outside of lanes, do not count.
local function count_in(lanes)
  local count = 0
  for _, lane in ipairs(lanes) do
    if string.find(lane, '|', 1, true) then count = count + redis.call('ZCARD', prefix .. lane) end
  end
  return count
end

-- How many lanes of a tenant wait for a limit, and how many tasks in them, or -1 if there are more lanes than `most`.
local function lanes_and_tasks(name, tenant, most)
  local key = shut_lanes_key(prefix, name, tenant)
  local lanes = redis.call('ZCARD', key)
  return lanes, lanes > most and -1 or count_in(redis.call('ZRANGE', key, 0, most - 1))
end

-- The same for all tenants, or -1 for both.
local function all_lanes_and_tasks(name)
  local tenants, lanes, tasks = redis.call('ZRANGE', prefix .. 'shut:' .. name, 0, MOST_LANES), 0, 0
  if #tenants > MOST_LANES then return -1, -1 end
  for _, tenant in ipairs(tenants) do
    local some, counted = lanes_and_tasks(name, tenant, MOST_LANES - lanes)
    if counted < 0 then return -1, -1 end
    lanes, tasks = lanes + some, tasks + counted
  end
  return lanes, tasks
end

local limit_name = string.match(part, '^shut:(.+)$')
if limit_name then
  for n, tenant in ipairs(page_of(prefix .. part)) do
    rows[n] = { tenant, lanes_and_tasks(limit_name, tenant, MOST_LANES) }
  end
elseif string.find(part, '^shut_lanes:') then
  rows[1] = count_in(page_of(prefix .. part))
elseif part == 'opens' then
  names = page_of(prefix .. part)
else
  local found = redis.call('HSCAN', prefix .. part, cursor, 'COUNT', limit)
  following, size = found[1], redis.call('HLEN', prefix .. part) - redis.call('HEXISTS', prefix .. part, '')
  for n = 1, #found[2], 2 do
    if found[2][n] ~= '' then names[#names + 1] = found[2][n] end
  end
end
if part == 'limits' or part == 'opens' or part == 'closed' then
  rows = rows_of_limits(prefix, names)
  for n, name in ipairs(names) do
    local row = rows[n]
    row[#row + 1], row[#row + 2] = all_lanes_and_tasks(name)
  end
else
  for first = 1, #names, AT_ONCE do
    local last = math.min(first + AT_ONCE - 1, #names)
    local waiting = redis.call('HMGET', prefix .. 'waiting', unpack(names, first, last))
    local settings = redis.call('HMGET', prefix .. 'tenants', unpack(names, first, last))
    for n = 1, last - first + 1 do
      local since = string.match(settings[n] or '', ' (%d+)$')
      local by = since and names_of_pauses(prefix, { 'tenant ' .. names[first + n - 1], since })[2]
      rows[#rows + 1] = { names[first + n - 1], waiting[n] or '', settings[n] or '', by or '' }
    end
  end
end
return { reply_time(now, state[1]), following, size, rows }
