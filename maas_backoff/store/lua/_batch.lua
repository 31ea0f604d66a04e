-- Batches: a claim of tasks of one kind that one call of a handler runs together. A batch is claimed when it is full, or when its
-- oldest task has been due long enough. Until then, nothing is claimed: no lease waits in a worker.
-- A claim that finds too few tasks leaves "~tasks costs until" in the hash `kinds`: new tasks wake nobody until so many more,
-- or so much more cost, have come, or until that time. See _arrivals.lua.

-- The ranks of the first tasks that wait, as text, of the kinds after the '~' in `kinds`: the worker claims their batches.
-- '' for a kind without tasks, or a paused one. A read that fails after the writes would be too late: it finds nothing.
local function first_ranks(prefix, kinds)
  local names, ranks = {}, {}
  for name in string.gmatch(string.match(kinds, '~(.*)'), '%S+') do names[#names + 1] = name end
  local states = redis.pcall('HMGET', prefix .. 'kinds', unpack(names))
  for n, name in ipairs(names) do
    local least
    local function note(key)
      local rank = tonumber(redis.pcall('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
      if rank and (not least or rank < least) then least = rank end
    end
    if is_open(states[n]) then
      -- Suspects come first, then tasks outside of lanes, then those of the tenant whose turn it is.
      local base = base_of(prefix, name)
      local index = base .. 'ready'
      note(base .. 'suspects')
      note(index)
      local tenant = redis.pcall('ZRANGE', turns_key(index), 0, 0)[1]
      if tenant then
        note(lane_key(index, tenant))
        note(limited_key(index, tenant))
      end
    end
    ranks[n] = least and string.format('%.0f', least) or ''
  end
  return ranks
end

-- A claim of the text "size wait_ms cost": the most tasks, how long the oldest one may wait, the most costs or '-'. The first
-- of `kinds` is claimed.
local function new_batch(text, prefix, kinds)
  local size, wait_ms, most = string.match(text, '^(%S+) (%S+) (%S+)$')
  size, wait_ms, most = tonumber(size), tonumber(wait_ms), tonumber(most) or math.huge
  local kind = string.match(kinds, '^%S+')
  local batch, index = { size = size, wait_ms = 0, is_cut = false }, base_of(prefix, kind) .. 'ready'
  local count, cost, oldest, is_full, was_waiting = 0, 0, math.huge, false, false

  local function cost_of(claim) return most < math.huge and first_cost_of(claim.task[CREATION]) or 0 end

  -- Whether the batch has room for the cost of one more task. If not, it is full.
  local function has_room(claim)
    is_full = is_full or count > 0 and cost + cost_of(claim) > most
    return not is_full
  end

  -- Takes a task into the batch, if it has room.
  local function add(claim)
    if not has_room(claim) then return false end
    count, cost = count + 1, cost + cost_of(claim)
    oldest = math.min(oldest, tonumber(claim.task[DUE] or string.match(claim.task[CREATION], '^%d+')) or 0)
    is_full = count >= size or cost >= most
    return true
  end

  -- Takes a task that waits for a GPU into the batch, where suspects and other tasks do not meet.
  function batch.may_join(claim)
    local is_suspect_too = is_suspect(claim.task[COUNTS]) and true or false
    if count > 0 and is_suspect_too ~= batch.has_suspects then return false end
    if not add(claim) then return false end
    batch.has_suspects = is_suspect_too
    return true
  end

  function batch.is_full() return is_full end

  local function reset() count, cost, oldest, is_full = 0, 0, math.huge, false end

  -- The ms until the batch is due.
  local function left(now) return (count == 0 or is_full) and 0 or math.max(0, oldest + wait_ms - now) end

  -- Claims of the first tasks of the index, outside of lanes.
  local function claims_of_index(orphans)
    local claims = {}
    for _, id in ipairs(redis.call('ZRANGE', index, 0, size - 1)) do
      local task = read_task(prefix .. 't:' .. id)
      local claim = task and claim_of(id, index, task)
      if not task then
        drop_entry(orphans, index, id, task)
      elseif add(claim) then
        claims[#claims + 1] = claim
      else
        break
      end
    end
    return claims
  end

  local function claims_of_lanes(turns)
    local claims = {}
    turns.take({ index }, size, claims, function(claim)
      turns.is_full = not add(claim)
      return not turns.is_full
    end)
    return claims
  end

  -- Finds out what the batch would be. The lanes, turns and limits of this trial are thrown away, but not the lanes that
  -- it has roused: they take turns again. Returns whether there are any.
  local function try_lanes_of(now, turn, limits)
    local before = #overdue
    local trial = limits and new_limits(prefix, now, turn)
    claims_of_lanes(new_turns(prefix, turn, new_lanes(prefix, turn), trial, {}, {}, {}))
    if trial then limits.take_roused(trial) end
    for n = #overdue, before + 1, -1 do overdue[n] = nil end
    return trial and next(trial.roused) ~= nil
  end

  -- The claims of the batch. If it is not due, there are none, and `batch.wait_ms` is above 0. Suspects wait for nobody:
  -- those of one cohort run together.
  function batch.claims(suspicion, now, turn, turns, limits, orphans)
    local waits = redis.call('HGET', prefix .. 'kinds', kind)
    was_waiting = waits and string.sub(waits, 1, 1) == '~'
    local claims = claims_of_suspects(suspicion, { base_of(prefix, kind) }, size, prefix .. 't:', orphans, function(claim)
      return has_room(claim) and (not turns or turns.pay(claim)) and add(claim)
    end)
    if #claims > 0 then
      batch.is_cut = true
      return claims
    end
    reset()
    if turns then
      local has_roused = try_lanes_of(now, turn, limits)
      batch.wait_ms = left(now)
      if batch.wait_ms > 0 then return {} end
      -- Lanes of other kinds came first. The claim could rouse those of this kind now, and nobody has seen whether they are due.
      if count == 0 and has_roused then
        batch.is_cut = true
        return {}
      end
      reset()
      claims = claims_of_lanes(turns)
    else
      claims = claims_of_index(orphans)
      batch.wait_ms = left(now)
      if batch.wait_ms > 0 then return {} end
    end
    batch.is_cut = is_full
    return claims
  end

  -- Notes what the batch waits for, or that it waits no more. A hint: a server that is full refuses it.
  function batch.note(now)
    if batch.wait_ms > 0 then
      local costs = most == math.huge and '-' or string.format('%.12g', most - cost)
      local waits = string.format('~%d %s %.0f', size - count, costs, math.ceil(now + batch.wait_ms))
      redis.pcall('HSET', prefix .. 'kinds', kind, waits)
    elseif was_waiting then
      redis.pcall('HSET', prefix .. 'kinds', kind, '')
    end
  end

  return batch
end
