-- Turns: claims from lanes, so that each tenant gets a share by its weight, whatever its tasks cost.
-- Start-time fair queueing (Goyal, Vin, Cheng 1996): a tenant's virtual start moves by cost / weight for each task that is
-- taken, and the tenant with the least start comes next. `turns` of an index has the starts of the tenants with tasks in
-- open lanes there. A tenant may have tasks in several indexes: its last start is in `virtual`, while it is not below the
-- virtual time. `turn` in meta is "time mean": the start of the last tenant that was taken, and the moving mean of costs.

-- Virtual time of a task of cost 1 at weight 1. Costs and weights have three digits after the point.
local UNIT = 1000000
-- A tenant takes tasks for so many mean costs more than its turn: to visit a tenant takes as long as to take a task.
local BURST, FEW = 9, 12
-- The use of a tenant in other indexes counts for so many mean costs at most: an index that is served less is behind others.
local MOST_DEBT = 100
-- Tenants that a call visits, beyond the tasks it may take; limited lanes of a tenant that a visit looks at.
local MORE_VISITS, MOST_LANES = 64, 8

-- The lane and the costs of a task that waits outside of lanes: a suspect, or one that an older release has moved; or nil.
-- A line without a lane is shorter than SHORTEST: most need not be parsed.
local SHORTEST = 30

local function lane_and_costs_of(task)
  local created = task[CREATION]
  if (string.find(created, '\n', SHORTEST, true) or SHORTEST) == SHORTEST then return nil end
  return string.match(created, '^%S+ %S+ %S+ %S+ %S+ %S+ (%S+) (%S+)\n')
end

-- `turn`: the field of meta.
local function new_turns(prefix, turn, lanes, limits, orphans, from, to)
  local turns, starts, scores, weights, paused, charged = { is_cut = false }, {}, {}, {}, {}, {}
  local parts, visits, most_visits, passed, progress, cost_sum, cost_count = {}, 0, 0, 0, 0, 0, 0
  local at, mean = string.match(turn or '', '^(%S+) (%S+)$')
  at, mean = tonumber(at or 0) or 0, tonumber(mean or 1) or 1
  local now_at = at

  local function know(tenants)
    local unknown = {}
    for _, tenant in ipairs(tenants) do
      if not weights[tenant] then unknown[#unknown + 1] = tenant end
    end
    if #unknown == 0 then return end
    local virtual = redis.call('ZMSCORE', prefix .. 'virtual', unpack(unknown))
    local settings = redis.call('HMGET', prefix .. 'tenants', unpack(unknown))
    for n, tenant in ipairs(unknown) do
      scores[tenant], weights[tenant] = tonumber(virtual[n] or nil), 1
      if settings[n] then weights[tenant], paused[tenant] = settings_of(settings[n]) end
    end
  end

  -- Moves the start of a tenant by a cost, which may be negative.
  local function move(tenant, cost)
    if not starts[tenant] then
      know({ tenant })
      starts[tenant] = scores[tenant] or at
    end
    starts[tenant] = math.max(0, starts[tenant] + math.floor(cost * UNIT / weights[tenant]))
    charged[tenant] = true
  end

  -- A task cost something else than was charged at its claim.
  function turns.correct(lane, delta)
    if delta ~= 0 then move(tenant_of(lane), delta) end
  end

  -- Whether a task that waits outside of lanes may start: its tenant is not paused, and its limits have room. If they have
  -- none, its index waits for them.
  local function may_pay(claim)
    local lane, costs = lane_and_costs_of(claim.task)
    local tenant = lane and tenant_of(lane) or ''
    if lane then know({ tenant }) end
    if paused[tenant] then return false end
    local states = lane and limits and limits.states_of(lane)
    local shut = states and limits.shut_of(states)
    if shut then limits.park(claim.from, shut, 0) end
    claim.pays = { tenant = tenant, lane = lane, costs = costs, states = states }
    return not shut
  end

  local function pay(claim)
    local pays = claim.pays
    if pays.lane then lanes.count(pays.lane, -1) end
    if pays.states then limits.charge(claim.id, pays.states, pays.lane .. ' ' .. pays.costs) end
    move(pays.tenant, pays.lane and tonumber(string.match(pays.costs, '^[^,]+')) or 1)
  end

  -- Pays for a task that waits outside of lanes, if it may start.
  function turns.pay(claim)
    local may = may_pay(claim)
    if may then pay(claim) end
    return may
  end

  -- Reads the next ids of a lane. Their ranks are read only if the tenant has several lanes there.
  local function read_ids(lane, has_ranks)
    local first, last = lane.read, lane.read + lane.step - 1
    if has_ranks then
      local found = redis.call('ZRANGE', lane.key, first, last, 'WITHSCORES')
      local ids, ranks = {}, {}
      for n = 1, #found, 2 do ids[#ids + 1], ranks[#ranks + 1] = found[n], tonumber(found[n + 1]) end
      lane.ids, lane.ranks = ids, ranks
    else
      lane.ids, lane.ranks = redis.call('ZRANGE', lane.key, first, last), nil
    end
    lane.first, lane.at, lane.is_end, lane.read = lane.read, 1, #lane.ids < lane.step, lane.read + lane.step
    lane.step = math.min(2 * lane.step, 100)
  end

  -- The next id of a lane; nil at its end.
  local function head_of(lane, has_ranks)
    if has_ranks and lane.ids and not lane.ranks then lane.read, lane.ids = lane.first + lane.at - 1, nil end
    if not lane.ids or lane.at > #lane.ids and not lane.is_end then read_ids(lane, has_ranks) end
    return lane.ids[lane.at]
  end

  local function add_lane(entry, name, step)
    if entry.names[name] then return end
    entry.names[name] = true
    local key = name == '' and entry.part.index or lane_key(entry.part.index, name)
    local states = name ~= entry.tenant and limits.states_of(name) or nil
    entry.lanes[#entry.lanes + 1] = { key = key, name = name, read = 0, step = step, states = states, taken = 0 }
  end

  -- Finds the lanes of a tenant. Only one with limits has more than one.
  local function open(entry, step)
    if not entry.lanes then
      entry.lanes, entry.names, entry.read = {}, {}, 0
      add_lane(entry, entry.tenant, step)
    end
    if not limits then return end
    entry.limited = limited_key(entry.part.index, entry.tenant)
    local names = redis.call('ZRANGE', entry.limited, entry.read, entry.read + MOST_LANES - 1)
    if not names[1] then
      entry.has_more = false
      return
    end
    -- Most tenants have only one lane with tasks: then no ranks are compared.
    local first = entry.lanes[1]
    if first and not first.states and not head_of(first, true) then table.remove(entry.lanes, 1) entry.empty = first end
    for _, name in ipairs(names) do add_lane(entry, name, step or BURST + 2) end
    entry.read, entry.has_more = entry.read + MOST_LANES, #names == MOST_LANES
  end

  -- Counts the tasks that were taken out of a lane.
  local function count_taken(entry, lane)
    if lane.taken == 0 or lane.name == '' then return end
    charged[entry.tenant] = true
    lanes.leave(entry.part.index, lane.taken)
    lanes.count(lane.name, -lane.taken)
  end

  -- A lane that is shut waits for its limit.
  local function park(entry, at, shut)
    local lane = table.remove(entry.lanes, at)
    count_taken(entry, lane)
    limits.park(lane.key, shut, starts[entry.tenant])
    append(from, entry.limited, lane.name)
    visits, progress = visits + 1, progress + 1
  end

  -- The open lane with the task of the least rank, and the id of that task; lanes that are shut wait for their limits.
  local function next_of(entry)
    local open_lanes = entry.lanes
    while true do
      local best, best_id, at
      for n, lane in ipairs(open_lanes) do
        local id = head_of(lane, true)
        if id and (not best or lane.ranks[lane.at] < best.ranks[best.at]) then best, best_id, at = lane, id, n end
      end
      local shut = best and best.states and limits.shut_of(best.states)
      if not shut then return best, best_id end
      park(entry, at, shut)
      if visits >= most_visits then return nil end
    end
  end

  -- The first cost of a task of a lane. Notes the text of all its costs, and the line with them: the next task mostly has
  -- the same line, and to look for it is the fastest way. A creation has no other line's end: JSON has none.
  local function cost_of(lane, created)
    if lane.line and string.find(created, lane.line, 1, true) then return lane.cost end
    local name, costs = string.match(created, '^%S+ %S+ %S+ %S+ %S+ %S+ (%S+) (%S+)\n')
    lane.text = name .. ' ' .. costs
    lane.line, lane.cost = ' ' .. lane.text .. '\n', tonumber(string.match(costs, '^[^,]+')) or 1
    return lane.cost
  end

  -- Writes the start of a tenant in an index, if it has moved.
  local function write_start(entry)
    local start = starts[entry.tenant] - entry.less
    if start ~= entry.score then append(to, entry.part.turns, start, entry.tenant) end
  end

  -- Notes where a tenant stands in an index.
  local function leave(entry)
    local part, tenant, is_there = entry.part, entry.tenant, false
    if not entry.lanes then
      if not entry.is_guess then write_start(entry) end
      return
    end
    if entry.empty then entry.lanes[#entry.lanes + 1] = entry.empty end
    for _, lane in ipairs(entry.lanes) do
      local is_empty = lane.ids and lane.at > #lane.ids and not lane.has_kept
        and (lane.is_end or redis.call('ZCARD', lane.key) == lane.read)
      is_there = is_there or not is_empty
      count_taken(entry, lane)
      if lane.name ~= '' and is_empty then
        append(from, prefix .. 'lanes', string.sub(lane.key, #prefix + 1))
        lanes.emptied[lane.key] = true
      end
      if lane.name ~= tenant then
        if is_empty then append(from, entry.limited, lane.name)
        elseif lane.taken > 0 and lane.ranks and lane.ids[lane.at] then
          append(to, entry.limited, lane.ranks[lane.at], lane.name)
        end
      end
    end
    -- Lanes that were not opened; none, if those that are gone were the last.
    if entry.has_more and not is_there then
      is_there = redis.call('ZCARD', entry.limited) > #(from[entry.limited] or {})
    end
    if is_there then write_start(entry) else append(from, part.turns, tenant) end
  end

  -- Takes up to `wanted` tasks out of lanes of some indexes. `may`, if given, says whether a claim may be made, and may note
  -- something in it; other tasks are passed over.
  function turns.take(indexes, wanted, claims, may)
    local entries, unread, most = {}, {}, #claims + wanted
    local step, is_stopped, furthest = math.ceil(wanted / (BURST + 1)) + 3, false, 0
    most_visits, passed = visits + wanted + MORE_VISITS, 0

    local function add(part, tenant, score)
      starts[tenant] = starts[tenant] or scores[tenant] or score
      local start = math.min(scores[tenant] and starts[tenant] or score, part.most)
      -- The start in this index is less than the real one by `less`, which stays when the tenant is charged.
      local entry = { part = part, tenant = tenant, score = score, less = starts[tenant] - start }
      entries[#entries + 1], part.entries[tenant], part[#part + 1] = entry, entry, entry
      return entry
    end

    local function read_more(part)
      local found, tenants = redis.call('ZRANGE', part.turns, part.read, part.read + step - 1, 'WITHSCORES'), {}
      for n = 1, #found, 2 do tenants[#tenants + 1] = found[n] end
      if part.read == 0 then
        tenants[#tenants + 1] = ''
        part.least = tonumber(found[2] or at)
        part.most = part.least + MOST_DEBT * UNIT * mean
      end
      know(tenants)
      for n = 1, #found / 2 do
        if not part.entries[tenants[n]] then add(part, tenants[n], tonumber(found[2 * n])) end
      end
      -- Plain tasks may wait without a turn.
      if part.read == 0 and not part.entries[''] then add(part, '', part.least).is_guess = true end
      part.read, part.bound = part.read + step, tonumber(found[#found] or 0)
      if #found < 2 * step then unread[part] = nil end
      -- Old starts in an index are written anew, so that each is read once: the next claim goes on.
      if part.read > 2 * (wanted + MORE_VISITS) and unread[part] then
        unread[part], turns.is_cut = nil, true
      end
    end

    -- The place of the entry whose turn it is, and the least start of all others; or a part of which more must be read.
    local function first_of()
      local first, start, second = nil, math.huge, math.huge
      for n, entry in ipairs(entries) do
        local own = starts[entry.tenant] - entry.less + entry.part.lift
        if own < start then first, start, second = n, own, start
        elseif own < second then second = own end
      end
      for part in pairs(unread) do
        local bound = part.bound + part.lift
        if bound < start then return nil, nil, part end
        if bound < second then second = bound end
      end
      return first, second
    end

    -- Drops the entry of a task that cannot run, unless it stays. The settle of an overdue task counts it.
    local function drop(lane, entry, id, key, task)
      drop_entry(orphans, lane.key, id, task)
      if lane.name ~= '' then
        lanes.leave(entry.part.index, 1)
        if overdue[#overdue] ~= key then lanes.count(lane.name, -1) end
      end
    end

    -- A task that is not claimed now: it stays, or is gone.
    local function leave_out(lane, entry, id, key, task)
      if task == false then
        is_stopped, lane.has_kept, turns.is_cut = true, true, true
      else
        drop(lane, entry, id, key, task)
      end
    end

    -- Takes tasks of a tenant's only lane, until its start is above `most_start`, its ids have to be read, or its limits have
    -- to be asked: as `visit` does it, with half of the steps. Most tasks are taken here.
    local function take_run(entry, lane, most_start)
      local states, room = lane.states, math.huge
      if states then
        local shut, left = limits.shut_of(states)
        if shut then return end
        room = left
      end
      local tenant, ids, at, from_key, base = entry.tenant, lane.ids, lane.at, lane.key, prefix .. 't:'
      local start, weight, taken, before = starts[tenant], weights[tenant], #claims, #claims
      local line, cost, step = nil, 0, 0
      repeat
        local id = ids[at]
        if not id or room <= 0 then break end
        at, room = at + 1, room - 1
        local key = base .. id
        local task = read_task(key)
        if task then
          local created = task[CREATION]
          if not line or not string.find(created, line, 1, true) then
            cost = cost_of(lane, created)
            line, step = lane.line, math.floor(cost * UNIT / weight)
          end
          taken, start, cost_sum = taken + 1, start + step, cost_sum + cost
          claims[taken] = { id = id, from = from_key, task = task, token = 0, attempt = (task[ATTEMPT] or 0) + 1 }
          if states then limits.charge(id, states, lane.text) end
        else
          leave_out(lane, entry, id, key, task)
        end
      until taken >= most or start > most_start or is_stopped
      lane.at, lane.taken, starts[tenant] = at, lane.taken + taken - before, start
      cost_count = cost_count + taken - before
    end

    local function visit(entry, second)
      if not entry.lanes then open(entry, second == math.huge and math.min(wanted, 99) + 1 or BURST + 2) end
      local tenant = entry.tenant
      for _, lane in ipairs(entry.lanes) do lane.room = 0 end
      -- Among few tenants, whose ids are all read already, a burst would save little.
      local burst = #entries < FEW and next(unread) == nil and 1 or BURST
      local most_start = second + burst * UNIT * mean
      local only = not may and not entry.lanes[2] and entry.lanes[1]
      if only and only.name ~= '' and head_of(only, false) then
        local most_own = most_start + entry.less - entry.part.lift
        take_run(entry, only, most_own)
        if is_stopped or #claims >= most or starts[tenant] > most_own then return end
      end
      repeat
        local lane, id = entry.lanes[1], nil
        if entry.lanes[2] then
          lane, id = next_of(entry)
        elseif lane then
          id = lane.ids and lane.ids[lane.at] or head_of(lane, false)
          if id and lane.states then
            -- `room` is for so many tasks: in this visit, nothing else takes it.
            if (lane.room or 0) <= 0 then
              local shut, room = limits.shut_of(lane.states)
              lane.room = room
              if shut then
                park(entry, 1, shut)
                id = nil
              end
            end
            lane.room = lane.room - 1
          end
        end
        if not id then
          if visits >= most_visits then is_stopped = true
          elseif entry.has_more then open(entry)
          else entry.is_done = true end
          return
        end
        lane.at = lane.at + 1
        local key = prefix .. 't:' .. id
        local task = read_task(key)
        local claim = task and claim_of(id, lane.key, task)
        if not task then
          leave_out(lane, entry, id, key, task)
        elseif lane.name == '' then
          if may_pay(claim) and (not may or may(claim)) then
            pay(claim)
            claims[#claims + 1] = claim
          else
            passed, lane.has_kept = passed + 1, true
          end
        elseif not may or may(claim) then
          local cost = cost_of(lane, task[CREATION])
          claims[#claims + 1], lane.taken = claim, lane.taken + 1
          cost_sum, cost_count = cost_sum + cost, cost_count + 1
          starts[tenant] = starts[tenant] + math.floor(cost * UNIT / weights[tenant])
          if lane.states then limits.charge(id, lane.states, lane.text) end
        else
          passed, lane.has_kept = passed + 1, true
        end
        is_stopped = is_stopped or turns.is_full or passed >= MOST_PASSED
      until is_stopped or #claims >= most or starts[tenant] - entry.less + entry.part.lift > most_start
    end

    -- Lanes whose limits have room again join the others.
    local function join_roused()
      local is_any = false
      for _, one in ipairs(limits.rouse()) do
        local part = parts[one.index]
        local entry = part and part.entries[one.tenant]
        if part and part.take ~= entries then
          -- Another demand's turn is over. The tenant keeps its place there, for the next claim.
          if entry then entry.has_more = true end
        elseif part then
          know({ one.tenant })
          entry = entry or add(part, one.tenant, part.least)
          if entry.lanes then
            entry.limited = entry.limited or limited_key(one.index, one.tenant)
            add_lane(entry, one.lane, BURST + 2)
          end
          if entry.is_done then entry.is_done, entries[#entries + 1] = false, entry end
          is_any = true
        end
      end
      return is_any
    end

    for _, index in ipairs(indexes) do
      local part = { index = index, turns = turns_key(index), entries = {}, read = 0, bound = 0, take = entries, lift = 0 }
      parts[index], parts[#parts + 1], unread[part] = part, part, true
      read_more(part)
      furthest = math.max(furthest, part.least)
    end
    -- An index that was not served, such as that of a paused kind, saves no more turns than a debt may have.
    for part in pairs(unread) do part.lift = math.max(0, furthest - part.least - MOST_DEBT * UNIT * mean) end
    for _, entry in ipairs(entries) do
      entry.part.lift = math.max(0, furthest - entry.part.least - MOST_DEBT * UNIT * mean)
    end
    while #claims < most and not is_stopped do
      local n, second, part = first_of()
      if part then
        read_more(part)
      elseif n then
        local entry = table.remove(entries, n)
        local start, taken = starts[entry.tenant] - entry.less, #claims
        visits = visits + 1
        visit(entry, second)
        if #claims > taken then now_at = math.max(now_at, start) end
        -- Behind those of the same start: they take turns.
        if entry.is_done then progress = progress + 1 else entries[#entries + 1] = entry end
        if visits >= most_visits then
          -- The next claim goes on, unless it would meet the same tenants.
          is_stopped, turns.is_cut = true, turns.is_cut or progress > 0
        end
      elseif not limits or not join_roused() then
        break
      end
    end
  end

  -- Plans the writes of the turns, once after the last claim.
  function turns.plan()
    for _, part in ipairs(parts) do
      for _, entry in ipairs(part) do leave(entry) end
    end
    for tenant in pairs(charged) do append(to, prefix .. 'virtual', starts[tenant], tenant) end
  end

  -- Starts below the virtual time are forgotten: a tenant that comes begins with the others.
  function turns.write(meta)
    if cost_count > 0 then mean = 0.9 * mean + 0.1 * cost_sum / cost_count end
    if cost_count > 0 or now_at ~= at then redis.call('HSET', meta, 'turn', whole(now_at) .. string.format(' %.6g', mean)) end
    redis.call('ZREMRANGEBYSCORE', prefix .. 'virtual', '-inf', '(' .. whole(now_at))
  end

  return turns
end
