-- Lanes: a due task with a tenant or with limits waits in a lane of its index (`ready` of a kind, or a GPU's set). Tasks
-- with the same tenant and the same limits share a lane. The others wait in the index itself, which is the lane of the
-- tenant ''. Suspects wait outside of lanes. docs/data-model.md describes the keys; _turns.lua takes tasks out of lanes.
-- A lane is named "tenant", or "tenant|limit,limit"; its key is "<index>|<lane>".

local function lane_key(index, lane) return index .. '|' .. lane end

local function turns_key(index) return index .. ':turns' end

-- The limited lanes of a tenant in an index, by the rank of their first task, or by a lower one.
local function limited_key(index, tenant) return index .. ':limited|' .. tenant end

-- The lanes of a tenant that wait for a limit: see _limits.lua.
local function shut_lanes_key(prefix, limit, tenant) return prefix .. 'shut_lanes:' .. limit .. '|' .. tenant end

local function tenant_of(lane) return string.match(lane, '^[^|]*') end

local function limits_text_of(lane) return string.match(lane, '|(.+)$') end

-- The index and the lane in a key, or in the end of a key after the queue's prefix.
local function parts_of_key(key) return string.match(key, '^([^|]*)|(.*)$') end

-- The beginning of the keys of the kind of an index, by the index's name after the queue's prefix; and whether it is for GPUs.
local function base_of_index(prefix, name)
  local set = string.match(name, '^gpu:(.+)$')
  if set then return base_of(prefix, (parts_of(set))), true end
  return prefix .. string.gsub(name, '%a+$', '')
end

-- The settings of a tenant in the hash `tenants`: "weight", or "weight since" if it is paused since then.
local function settings_of(stored)
  local weight, since = string.match(stored or '', '^(%S+) ?(%S*)$')
  local number = tonumber(weight or 1) or 1
  return number > 0 and number or 1, (since or '') ~= ''
end

-- The start of a tenant that comes to an index: that of the tenant whose turn is next, or the virtual time `turn` of meta.
local function least_start(index, turn)
  return redis.call('ZRANGE', turns_key(index), 0, 0, 'WITHSCORES')[2] or string.match(turn or '', '^%S+') or 0
end

-- The changes of lanes that a script plans, to be written at its end. `turn` is the field of meta, or false: see _turns.lua.
-- Made on demand, because each function costs a script time.
local function new_lanes(prefix, turn)
  local lanes, entered, left, least, counts, waiting = { emptied = {} }, {}, {}, {}, {}, {}
  local tenants, has_limits = {}, false

  local function is_paused(tenant)
    if tenants.number == nil then tenants.number = redis.call('HLEN', prefix .. 'tenants') end
    if tenants.number == 0 then return false end
    local _, paused = settings_of(redis.call('HGET', prefix .. 'tenants', tenant))
    return paused
  end

  -- Counts tasks of a lane that wait, delayed ones too: the tenant's waiting ones. Those of the tenant '' have limits.
  function lanes.count(lane, number)
    local tenant = tenant_of(lane)
    if tenant ~= lane then has_limits = true end
    waiting[tenant] = (waiting[tenant] or 0) + number
  end

  -- Tasks enter a lane, the first of them with this rank. Returns the lane's key, for their ZADD. The first call for a lane
  -- reads keys; a script that has written may call it again with the same lane.
  function lanes.enter(index, lane, score, number)
    local key = lane_key(index, lane)
    local one = entered[key]
    if not one then
      one = { index = index, lane = lane, tenant = tenant_of(lane), rank = score, limits = limits_text_of(lane) }
      -- Read: a key of another type ends the script here.
      one.first = tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
      one.is_new = not one.first or lanes.emptied[key]
      if one.is_new then
        one.is_paused = is_paused(one.tenant)
        least[index] = least[index] or least_start(index, turn)
      end
      if one.limits then
        has_limits = true
        redis.call('ZCARD', limited_key(index, one.tenant))
      end
      entered[key] = one
    end
    one.rank = math.min(one.rank, score)
    if one.limits and not one.is_new and score < one.first and not one.is_earlier then
      one.is_earlier = true
      for name in string.gmatch(one.limits, '[^,]+') do redis.call('ZCARD', shut_lanes_key(prefix, name, one.tenant)) end
    end
    counts[index] = (counts[index] or 0) + number
    return key
  end

  -- Tasks leave a lane of an index by claims, which note whether they empty the lane.
  function lanes.leave(index, number) counts[index] = (counts[index] or 0) - number end

  -- A task leaves a lane in another way: the lane goes with its last task. The first call for a lane reads keys.
  function lanes.remove(index, lane)
    lanes.leave(index, 1)
    local key, tenant, limits = lane_key(index, lane), tenant_of(lane), limits_text_of(lane) or ''
    if left[key] then return end
    left[key] = { index = index, lane = lane, tenant = tenant, limits = limits }
    -- Read: a key of another type ends the script here.
    redis.call('ZCARD', turns_key(index))
    redis.call('ZCARD', limited_key(index, tenant))
    for name in string.gmatch(limits, '[^,]+') do
      redis.call('ZCARD', prefix .. 'shut:' .. name)
      redis.call('ZCARD', shut_lanes_key(prefix, name, tenant))
    end
    if limits ~= '' then redis.call('ZCARD', prefix .. 'opens') end
  end

  -- Forgets a lane without tasks, and the turn of its tenant if no other lane of the tenant is in turn.
  local function drop_lane(key, one)
    local member, limited, turns = string.sub(key, #prefix + 1), limited_key(one.index, one.tenant), turns_key(one.index)
    redis.call('ZREM', prefix .. 'lanes', member)
    redis.call('ZREM', limited, one.lane)
    for name in string.gmatch(one.limits, '[^,]+') do
      local waiting = shut_lanes_key(prefix, name, one.tenant)
      redis.call('ZREM', waiting, member)
      if redis.call('ZCARD', waiting) == 0 then redis.call('ZREM', prefix .. 'shut:' .. name, one.tenant) end
      if redis.call('ZCARD', prefix .. 'shut:' .. name) == 0 then redis.call('ZREM', prefix .. 'opens', name) end
    end
    local unlimited = one.tenant == '' and 0 or redis.call('ZCARD', lane_key(one.index, one.tenant))
    if unlimited + redis.call('ZCARD', limited) == 0 then redis.call('ZREM', turns, one.tenant) end
  end

  -- The lane in which a task waits, or nil: it is delayed, or waits outside of lanes. Returns its key and its index.
  function lanes.find(id, created)
    local _, _, kind, lane = terms_of(created)
    if lane == '' then return nil end
    local candidates = { base_of(prefix, kind) .. 'ready' }
    for _, name in ipairs(redis.call('HKEYS', prefix .. 'demands')) do
      if parts_of(name) == kind then candidates[#candidates + 1] = gpu_set(prefix, name) end
    end
    for _, index in ipairs(candidates) do
      local key = lane_key(index, lane)
      if redis.call('ZSCORE', key, id) then return key, index end
    end
    return nil
  end

  -- Changes numbers in a hash, whose fields with 0 are removed.
  local function add_up(hash, numbers, cut)
    local names, sums, gone = {}, {}, {}
    for name, number in pairs(numbers) do
      if number ~= 0 then names[#names + 1] = cut and string.sub(name, cut) or name end
    end
    if not names[1] then return end
    local before = redis.call('HMGET', hash, unpack(names))
    for n, name in ipairs(names) do
      local sum = (before[n] or 0) + numbers[cut and prefix .. name or name]
      if sum > 0 then sums[#sums + 1], sums[#sums + 2] = name, sum else gone[#gone + 1] = name end
    end
    if sums[1] then redis.call('HSET', hash, unpack(sums)) end
    if gone[1] then redis.call('HDEL', hash, unpack(gone)) end
  end

  -- Writes the changes; the tasks themselves are entered and removed with those of other indexes. `noted` is the field
  -- `lanes` of meta: 1 if there were lanes, 2 if some had limits.
  function lanes.write(meta, noted)
    local listed = {}
    for key, one in pairs(entered) do
      if one.limits and one.is_new then
        redis.call('ZADD', limited_key(one.index, one.tenant), 'LT', one.rank, one.lane)
      elseif one.limits then
        redis.call('ZADD', limited_key(one.index, one.tenant), 'XX', 'LT', one.rank, one.lane)
      end
      -- The lane may wait for one of its limits.
      for name in string.gmatch(one.is_earlier and one.limits or '', '[^,]+') do
        redis.call('ZADD', shut_lanes_key(prefix, name, one.tenant), 'XX', 'LT', one.rank, string.sub(key, #prefix + 1))
      end
      if one.is_new then
        append(listed, prefix .. 'lanes', 0, string.sub(key, #prefix + 1))
        if not one.is_paused then append(listed, turns_key(one.index), least[one.index], one.tenant) end
      end
    end
    for key, args in pairs(listed) do
      for i = 1, #args, AT_ONCE do redis.call('ZADD', key, 'NX', unpack(args, i, math.min(i + AT_ONCE - 1, #args))) end
    end
    for key, one in pairs(left) do
      if redis.call('ZCARD', key) == 0 then drop_lane(key, one) end
    end
    add_up(prefix .. 'laned', counts, #prefix + 1)
    add_up(prefix .. 'waiting', waiting)
    if has_limits and noted ~= '2' then redis.call('HSET', meta, 'lanes', 2)
    elseif not noted and (next(entered) or next(waiting)) then redis.call('HSET', meta, 'lanes', 1) end
  end

  return lanes
end

-- Whether there are tasks with tenants or limits, or settings of limits.
local function is_fair_still(prefix)
  local keys = { 'lanes', 'limits', 'held', 'waiting', 'opens' }
  for n, name in ipairs(keys) do keys[n] = prefix .. name end
  return redis.call('EXISTS', unpack(keys)) > 0
end

-- Tasks outside of lanes take no more turns: there are no others. For the writing part of a script.
local function end_turns(prefix)
  for _, base in ipairs(bases_of_all(prefix)) do redis.pcall('ZREM', turns_key(base .. 'ready'), '') end
  for _, set in ipairs(gpu_sets(prefix)) do redis.pcall('ZREM', turns_key(set), '') end
end

-- Calls each command, and reads each hash and index, with which lanes are written: before the first write of a script.
local function try_lanes(prefix, meta, limits)
  local never = prefix .. 'never'
  redis.call('HDEL', never, '')
  redis.call('ZREM', never, '')
  redis.call('ZREMRANGEBYSCORE', never, 1, 0)
  redis.call('HINCRBY', meta, 'completed', 0)
  redis.call('HLEN', prefix .. 'laned')
  redis.call('HLEN', prefix .. 'waiting')
  redis.call('ZCARD', prefix .. 'lanes')
  if not limits then return end
  for _, name in ipairs({ 'use', 'held', 'closed' }) do redis.call('HLEN', prefix .. name) end
  redis.call('ZCARD', prefix .. 'arrivals')
  redis.call('ZCARD', prefix .. 'opens')
end

-- How many tasks wait in lanes, in all.
local function count_in_lanes(prefix)
  local counts, sum = redis.call('HGETALL', prefix .. 'laned'), 0
  for n = 2, #counts, 2 do sum = sum + counts[n] end
  return sum
end
