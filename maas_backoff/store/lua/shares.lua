--[[ Read one page of the tenants or of the limits of a queue, or count tasks that wait for a limit.
KEYS: meta
ARGV: now prefix part cursor limit
Returns: now, the next cursor (0: the end), how many entries the part has, rows
`part` is the key that is read: `waiting`, `tenants` or `paused_tenants` (a row is a tenant, its number of waiting tasks and its settings), or `limits`, `opens` or `closed` (a row is that of _shares.lua, how many lanes wait, and how many tasks in the first 20 of them); or `shut:<limit>`: one row with the number of tasks in a page of its lanes.
]]
--#include _clock
--#include _time
--#include _time_of
--#include _queue
--#include _lanes
--#include _shares
local state, prefix = redis.call('HMGET', KEYS[1], 'ahead', 'reaped_at'), ARGV[2]
local now = queue_time(clock(ARGV[1]), state[1], state[2])
local part, cursor, limit = ARGV[3], ARGV[4], tonumber(ARGV[5])
local names, rows, size, following = {}, {}, 0, '0'
local FIRST_LANES = 20

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

if string.sub(part, 1, 5) == 'shut:' then
  rows[1] = count_in(page_of(prefix .. part))
elseif part == 'opens' then
  names = page_of(prefix .. part)
else
  local found = redis.call('HSCAN', prefix .. part, cursor, 'COUNT', limit)
  following, size = found[1], redis.call('HLEN', prefix .. part)
  for n = 1, #found[2], 2 do names[#names + 1] = found[2][n] end
end
if part == 'limits' or part == 'opens' or part == 'closed' then
  rows = rows_of_limits(prefix, names)
  for n, name in ipairs(names) do
    local waiting, row = prefix .. 'shut:' .. name, rows[n]
    row[#row + 1] = redis.call('ZCARD', waiting)
    row[#row + 1] = count_in(redis.call('ZRANGE', waiting, 0, FIRST_LANES - 1))
  end
else
  for first = 1, #names, AT_ONCE do
    local last = math.min(first + AT_ONCE - 1, #names)
    local waiting = redis.call('HMGET', prefix .. 'waiting', unpack(names, first, last))
    local settings = redis.call('HMGET', prefix .. 'tenants', unpack(names, first, last))
    for n = 1, last - first + 1 do rows[#rows + 1] = { names[first + n - 1], waiting[n] or '', settings[n] or '' } end
  end
end
return { reply_time(now, state[1]), following, size, rows }
