-- Claiming: due tasks become leased ones.
-- If a task's deadline has passed, read_task returns nil: the claim drops its entry, and _overdue.lua ends the task.
-- After MOST_OVERDUE such tasks in one claim, read_task returns false: the entry stays for the next claim or the reaper.

-- The fields of a task that a worker needs, in the order in which they are read.
local CREATION, ATTEMPT, OVERRIDES, COUNTS, DUE = 1, 2, 3, 4, 5

local function read_task(key)
  local task = fields_of(key, 'p', 'n', 'o', 'k', 'u')
  -- A task whose hash is gone or of the wrong type cannot run; it must not stop the others.
  if not task or not task[CREATION] then return nil end
  if task[OVERRIDES] and is_overdue(task[OVERRIDES]) then
    if note_overdue(key) then return nil end
    return false
  end
  if task[COUNTS] and is_suspect(task[COUNTS]) then task.suspicion = redis.call('HGET', key, 'c') end
  return task
end

-- Notes the entry of a task that read_task has not returned, unless it stays.
local function drop_entry(orphans, index, id, task)
  if task == nil then append(orphans, index, id) end
end

-- The counts of a task that has come back, and further lines: suspicion, last error, failed attempts without tracebacks.
-- A '+' before the counts: earlier attempts have emitted something.
-- A task that was never back costs nothing for this. Its handler sees the errors, so that it need not read the task.
local function with_failures(counts, suspicion, key)
  -- The first failure is always in a0. Called after the writes: HMGET has been called before, and the hash was written.
  local first = redis.call('HMGET', key, 'a0', 'b')
  local has_stream = first[2] and string.sub(first[2], 1, 2) ~= '0 '
  if not (counts or has_stream) then return false end
  local lines = { (has_stream and '+' or '') .. (counts or ''), suspicion or '' }
  if first[1] then
    local found = redis.call('HMGET', key, 'e', 'a0', 'a1', 'a2', 'a3', 'a4', 'a5', 'a6', 'a7', 'a8', 'a9')
    lines[3] = found[1] or ''
    for n = 2, 11 do
      local record = found[n]
      if record then
        -- JSON has no quotation mark inside of a text that no backslash stands before. The keys are sorted.
        local first = string.find(record, ',"traceback":"', 1, true)
        local last = first and string.find(record, '","type":"', first, true)
        if last then record = string.sub(record, 1, first - 1) .. string.sub(record, last + 1) end
        lines[#lines + 1] = record
      end
    end
  end
  return table.concat(lines, '\n')
end

-- The claim of a task that waits in the index `from`.
local function claim_of(id, from, task)
  return { id = id, from = from, task = task, token = 0, attempt = (task[ATTEMPT] or 0) + 1 }
end

-- Claims of suspects that need no GPU, the oldest first. If any one cohort may be claimed, cohorts without a claim come
-- first: two workers then take the two halves of the tasks that were lost together. `bases`: of the kinds. `pay`, if given,
-- says for a claim whether its tenant is not paused and its limits have room, and charges it. A cohort that may not start
-- is not in the way of others.
local function claims_of_suspects(suspicion, bases, wanted, tasks, orphans, pay)
  if suspicion == NO_SUSPECTS then return {} end
  local rule, found, members = nil, {}, {}
  for _, base in ipairs(bases) do
    local suspects = base .. 'suspects'
    -- Twice as many: the other half is among them.
    for _, id in ipairs(redis.call('ZRANGE', suspects, 0, 2 * wanted + 99)) do
      local task = read_task(tasks .. id)
      rule = rule or suspicion_of(suspicion)
      if task then
        local one = { id = id, from = suspects, task = task }
        one.cohort, one.size = rule.cohort_of(id, task.suspicion)
        found[#found + 1] = one
        append(members, one.cohort, one)
      else
        drop_entry(orphans, suspects, id, task)
      end
    end
  end
  if not found[1] then return found end
  -- Each suspect is tried once, those of whole cohorts first. After a claim, only suspects of its cohort are claimed.
  local ordered, claims = {}, {}
  for _, one in ipairs(found) do
    local group = members[one.cohort]
    if not rule.cohort and group and #group >= one.size then
      for _, member in ipairs(group) do ordered[#ordered + 1] = member end
      members[one.cohort] = nil
    end
  end
  for _, one in ipairs(found) do
    if members[one.cohort] then ordered[#ordered + 1] = one end
  end
  for _, one in ipairs(ordered) do
    if #claims < wanted and rule.may_claim(one.id, one.task[COUNTS], one.task.suspicion) then
      local claim = claim_of(one.id, one.from, one.task)
      if not pay or pay(claim) then
        rule.note(one.id, one.task[COUNTS], one.task.suspicion)
        claim.is_suspect = true
        claims[#claims + 1] = claim
      end
    end
  end
  return claims
end

-- The claims of an earlier, identical request that still have their lease: its reply was lost. `fits`: as then returned.
local function replay(ids, first_token, fits, tasks)
  local held, token = {}, tonumber(first_token)
  local next_fit = string.gmatch(fits or '', '%d+')
  for id in string.gmatch(ids, '[^\n]+') do
    local fit = tonumber(next_fit() or '')
    local key = tasks .. id
    local now = fields_of(key, 's', 't')
    if now and now[1] == 'processing' and tonumber(now[2]) == token then
      local task = read_task(key)
      if task then held[#held + 1] = { id = id, task = task, token = token, attempt = tonumber(task[ATTEMPT]), fit = fit } end
    end
    token = token + 1
  end
  return held
end

-- The placement with enough memory for a task of a set that several demands share.
local function place_for(task, key, places)
  local memory = tonumber(string.match(demand_of(redis.call('HGET', key, 'q'), task[CREATION]), '^[^:]+'))
  for n, place in ipairs(places) do
    if place.memory >= memory then return n end
  end
  return nil
end

-- Claims of tasks that wait for a GPU: as many of each demand as there are placements, the oldest first. `closed`: of the
-- kinds that were paused since the placements were made. With `turns`, tenants take turns. A `batch` has one placement for
-- all of its tasks.
local function claims_on_fits(fits, prefix, closed, tasks, rule, orphans, turns, batch)
  local claims, names, by_demand = {}, {}, {}
  local number = 0
  for demand, device in string.gmatch(fits, '(%S+) ([^\n]+)') do
    if not by_demand[demand] and not closed[base_of(prefix, (parts_of(demand)))] then names[#names + 1] = demand end
    append(by_demand, demand, { number = number, device = device, memory = tonumber(string.match(device, '%S+$')) })
    number = number + 1
  end
  for _, demand in ipairs(names) do
    local from, places, first = gpu_set(prefix, demand), by_demand[demand], 0
    -- Gives a claim one of the placements, if it may have one.
    local function may(claim)
      local id, task = claim.id, claim.task
      if #places == 0 then return false end
      local fitting = not is_shared(demand) or place_for(task, tasks .. id, places)
      if not fitting or not rule.may_claim(id, task[COUNTS], task.suspicion) then return false end
      if batch and not batch.may_join(claim) then
        if batch.is_full() then
          places = {}
          if turns then turns.is_full = true end
        end
        return false
      end
      rule.note(id, task[COUNTS], task.suspicion)
      local place = batch and places[1] or table.remove(places, fitting == true and 1 or fitting)
      claim.fit, claim.device = place.number, place.device
      return true
    end
    if turns then
      turns.take({ from }, batch and batch.size or #places, claims, may)
    else
      repeat
        local ids = redis.call('ZRANGE', from, first, first + STEP - 1)
        for _, id in ipairs(ids) do
          if #places == 0 then break end
          local task = read_task(tasks .. id)
          local claim = task and claim_of(id, from, task)
          if not task then
            drop_entry(orphans, from, id, task)
          elseif may(claim) then
            claims[#claims + 1] = claim
          end
        end
        first = first + STEP
      until #places == 0 or #ids < STEP or first >= MOST_PASSED
    end
  end
  return claims
end
