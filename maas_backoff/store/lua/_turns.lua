-- Turns: claims from lanes, so that each tenant gets a share by its weight, whatever its tasks cost.
-- Start-time fair queueing (Goyal, Vin, Cheng 1996): a tenant's virtual start moves by cost / weight for each task that is
-- taken, and the tenant with the least start comes next. `turns` of an index has the tenants with tasks in open lanes
-- there, by a start that is never above the real one. `virtual` has the real starts, since a tenant may have tasks in
-- several indexes. `turn` in meta is the virtual time, the last least start: a tenant that comes begins there, or at its own.

-- Virtual time of a task of cost 1 at weight 1.
local UNIT = 1000
-- A tenant takes tasks for so many mean costs more than its turn: to visit a tenant takes as long as to take a task.
local BURST = 3
-- Tenants that a call visits, beyond the tasks it may take; limited lanes of a tenant that a visit looks at.
local MORE_VISITS, MOST_LANES = 64, 8

-- The lane of a task that waits outside of lanes: a suspect, or one that an older release has moved.
local function lane_of(task)
  local _, _, _, lane = terms_of(task[CREATION])
  return lane
end

local function new_turns(prefix, turn, lanes, limits, orphans, from, to)
  local turns, starts, weights, charged = { is_cut = false, at = turn }, {}, {}, {}
  local visits, most_visits, passed, cost_sum, cost_count = 0, 0, 0, 0, 0

  local function know(tenants)
    local unknown = {}
    for _, tenant in ipairs(tenants) do
      if not starts[tenant] then unknown[#unknown + 1] = tenant end
    end
    if #unknown == 0 then return end
    local virtual = redis.call('ZMSCORE', prefix .. 'virtual', unpack(unknown))
    local settings = redis.call('HMGET', prefix .. 'tenants', unpack(unknown))
    for n, tenant in ipairs(unknown) do
      starts[tenant], weights[tenant] = tonumber(virtual[n] or 0), settings_of(settings[n])
    end
  end

  -- Moves the start of a tenant by a cost, which may be negative.
  local function move(tenant, cost)
    starts[tenant] = math.max(0, starts[tenant] + math.floor(cost * UNIT / weights[tenant]))
    charged[tenant] = true
  end

  -- A claimed task is paid by its tenant, and takes room of its limits. `lane` is '' for a task without a tenant.
  function turns.charge(claim, lane)
    local costs, tenant, text = '1', tenant_of(lane), limits_text_of(lane)
    if lane ~= '' then costs = string.match(claim.task[CREATION], '^%S+ %S+ %S+ %S+ %S+ %S+ %S+ (%S+)\n') or '1' end
    local cost = tonumber(string.match(costs, '^[^,]+'))
    if not starts[tenant] then know({ tenant }) end
    starts[tenant] = math.max(starts[tenant], turns.at)
    move(tenant, cost)
    cost_sum, cost_count = cost_sum + cost, cost_count + 1
    if lane ~= '' then lanes.count(lane, -1) end
    if text then limits.charge(claim.id, lane, costs) end
  end

  -- A task cost something else than was charged at its claim.
  function turns.correct(lane, delta)
    know({ tenant_of(lane) })
    move(tenant_of(lane), delta)
  end

  -- Whether the limits of a task that waits outside of lanes have room for it.
  local function is_open_for(claim)
    local text = limits_text_of(lane_of(claim.task))
    local shut = text and limits.shut_of(text)
    if shut then limits.park(claim.from, shut, 0) end
    return not shut
  end

  -- Pays for a suspect that needs no GPU, unless its limits are shut.
  function turns.pay(claim)
    if not is_open_for(claim) then return false end
    turns.charge(claim, lane_of(claim.task))
    return true
  end

  local function read_ids(lane)
    local found = redis.call('ZRANGE', lane.key, lane.read, lane.read + lane.step - 1, 'WITHSCORES')
    lane.read, lane.found, lane.at, lane.is_end = lane.read + lane.step, found, 1, #found < 2 * lane.step
    lane.step = math.min(2 * lane.step, 100)
  end

  -- The next id of a lane, and its rank; nil at its end.
  local function head_of(lane)
    if not lane.found or lane.at > #lane.found and not lane.is_end then read_ids(lane) end
    return lane.found[lane.at], tonumber(lane.found[lane.at + 1])
  end

  local function is_at_end(lane) return lane.found and lane.is_end and lane.at > #lane.found end

  local function add_lane(entry, name, step)
    local key = name == '' and entry.index or lane_key(entry.index, name)
    entry.lanes[#entry.lanes + 1] = { key = key, name = name, read = 0, step = step }
  end

  -- Finds the lanes of a tenant. Only one with limits has more than one.
  local function open(entry, step)
    if not entry.lanes then
      entry.lanes, entry.read = {}, 0
      add_lane(entry, entry.tenant, step)
    end
    local limited = limited_key(entry.index, entry.tenant)
    local names = redis.call('ZRANGE', limited, entry.read, entry.read + MOST_LANES - 1)
    for _, name in ipairs(names) do add_lane(entry, name, BURST + 1) end
    entry.read, entry.has_more = entry.read + MOST_LANES, #names == MOST_LANES
  end

  -- The open lane with the task of the least rank, and the id of that task; lanes that are shut wait for their limits.
  local function next_of(entry)
    while true do
      local best, best_id, best_rank, at
      for n, lane in ipairs(entry.lanes) do
        local id, rank = head_of(lane)
        if id and (not best or rank < best_rank) then best, best_id, best_rank, at = lane, id, rank, n end
      end
      local text = best and limits_text_of(best.name)
      local shut = text and limits.shut_of(text)
      if not shut then return best, best_id end
      limits.park(best.key, shut, starts[entry.tenant])
      append(from, limited_key(entry.index, entry.tenant), best.name)
      table.remove(entry.lanes, at)
      visits = visits + 1
      if visits >= most_visits then return nil end
    end
  end

  -- Takes up to `wanted` tasks out of lanes of some indexes. `may`, if given, says whether a claim may be made, and may note
  -- something in it; other tasks are passed over.
  function turns.take(indexes, wanted, claims, may)
    local entries, used, unread, most, step = {}, {}, {}, #claims + wanted, math.ceil(wanted / (BURST + 1)) + 3
    local is_stopped = false
    most_visits = visits + wanted + MORE_VISITS

    local function add(index, tenant, score)
      starts[tenant] = math.max(starts[tenant], score)
      local entry = { index = index, tenant = tenant, score = score }
      entries[#entries + 1], used[#used + 1], used[index .. '|' .. tenant] = entry, entry, entry
      return entry
    end

    local function read_more(index)
      local part, tenants = unread[index], {}
      local found = redis.call('ZRANGE', turns_key(index), part.read, part.read + step - 1, 'WITHSCORES')
      for n = 1, #found, 2 do tenants[#tenants + 1] = found[n] end
      know(tenants)
      for n, tenant in ipairs(tenants) do
        if not used[index .. '|' .. tenant] then add(index, tenant, tonumber(found[2 * n])) end
      end
      part.read, part.bound = part.read + step, tonumber(found[#found] or 0)
      if #tenants < step then unread[index] = nil end
    end

    -- The place of the entry whose turn it is, and the least start of all others; or an index of which more must be read.
    local function first_of()
      local first, start, second = nil, math.huge, math.huge
      for n, entry in ipairs(entries) do
        local own = starts[entry.tenant]
        if own < start then first, start, second = n, own, start
        elseif own < second then second = own end
      end
      for index, part in pairs(unread) do
        if part.bound < start then return nil, nil, index end
        second = math.min(second, part.bound)
      end
      return first, second
    end

    local function visit(entry, second)
      if not entry.lanes then open(entry, second == math.huge and math.min(wanted, 100) or BURST + 1) end
      repeat
        local lane, id = next_of(entry)
        if not lane then
          if visits >= most_visits then is_stopped = true
          elseif entry.has_more then open(entry)
          else entry.is_done = true end
          return
        end
        lane.at = lane.at + 2
        local key = prefix .. 't:' .. id
        local task = read_task(key)
        local claim = task and claim_of(id, lane.key, task)
        if task == false then
          is_stopped = true
        elseif not task then
          drop_entry(orphans, lane.key, id, task)
          if lane.name ~= '' then
            lanes.leave(entry.index, 1)
            -- The settle of an overdue task counts it.
            if overdue[#overdue] ~= key then lanes.count(lane.name, -1) end
          end
        elseif lane.name ~= '' and (not may or may(claim)) then
          claims[#claims + 1], lane.is_used = claim, true
          lanes.leave(entry.index, 1)
          turns.charge(claim, lane.name)
        elseif lane.name == '' and is_open_for(claim) and (not may or may(claim)) then
          claims[#claims + 1] = claim
          turns.charge(claim, lane_of(task))
        else
          passed = passed + 1
          is_stopped = passed >= MOST_PASSED
        end
        local mean = cost_count > 0 and cost_sum / cost_count or 1
      until is_stopped or #claims >= most or starts[entry.tenant] > second + BURST * UNIT * mean
    end

    -- Notes where a tenant stands in an index.
    local function leave(entry)
      local key, is_there = turns_key(entry.index), entry.has_more
      for _, lane in ipairs(entry.lanes or {}) do
        local is_empty, is_limited = is_at_end(lane), lane.name ~= entry.tenant
        is_there = is_there or not is_empty and lane.name ~= ''
        if is_empty and lane.name ~= '' then
          append(from, prefix .. 'lanes', string.sub(lane.key, #prefix + 1))
          lanes.emptied[lane.key] = true
        end
        if is_limited and is_empty then
          append(from, limited_key(entry.index, entry.tenant), lane.name)
        elseif is_limited and lane.is_used and lane.found[lane.at] then
          append(to, limited_key(entry.index, entry.tenant), lane.found[lane.at + 1], lane.name)
        end
      end
      if not entry.lanes then return end
      if not is_there then
        if entry.tenant ~= '' or entry.read > 0 then append(from, key, entry.tenant) end
      elseif starts[entry.tenant] ~= entry.score then
        append(to, key, starts[entry.tenant], entry.tenant)
      end
    end

    -- Lanes whose limits have room again join the others.
    local function join_roused()
      local is_any = false
      for _, one in ipairs(limits.rouse()) do
        if unread[one.index] ~= nil or used[one.index .. '|'] then
          know({ one.tenant })
          local entry = used[one.index .. '|' .. one.tenant] or add(one.index, one.tenant, turn)
          if entry.lanes then add_lane(entry, one.lane, BURST + 1) end
          if entry.is_done then entry.is_done, entries[#entries + 1] = false, entry end
          is_any = true
        end
      end
      return is_any
    end

    know({ '' })
    for _, index in ipairs(indexes) do
      unread[index] = { read = 0, bound = 0 }
      add(index, '', turn)
      read_more(index)
    end
    while #claims < most and not is_stopped do
      local n, second, index = first_of()
      if index then
        read_more(index)
      elseif n then
        local entry = table.remove(entries, n)
        visits, turns.at = visits + 1, math.max(turns.at, starts[entry.tenant])
        visit(entry, second)
        -- Behind those of the same start: they take turns.
        if not entry.is_done then entries[#entries + 1] = entry end
        is_stopped = is_stopped or visits >= most_visits
      elseif not join_roused() then
        break
      end
    end
    for _, entry in ipairs(used) do leave(entry) end
    turns.is_cut = turns.is_cut or is_stopped
  end

  -- Writes the real starts. Those below the virtual time are forgotten: a tenant that comes begins there.
  function turns.write(meta)
    for tenant in pairs(charged) do append(to, prefix .. 'virtual', starts[tenant], tenant) end
    if turns.at ~= turn then redis.call('HSET', meta, 'turn', turns.at) end
    redis.call('ZREMRANGEBYSCORE', prefix .. 'virtual', '-inf', '(' .. whole(turns.at))
  end

  return turns
end
