-- Limits that all workers share: most running tasks, most starts in a time, most units in a time, of the tasks that name one.
-- A lane's tasks name the same limits, so that a shut lane hides no open task.
-- `limits` has the settings: "most interval_ms burst_ms unit_interval_ms unit_burst_ms" (0: none) under a name, or under
-- "class:*" for all names that begin with "class:". `use` counts running tasks, `held` has the lane and the costs of each.
-- `arrivals` has the theoretical arrival times of the generic cell rate algorithm: "r name" of tasks, "u name" of units.
-- `closed` has limits that a task closed: "until_ms trial strikes passed": after that time at most `trial` tasks at once. The
-- trial grows by one for each task that completes; for each 2, 4 or 8 of them if the limit was closed again in 1, 2 or 3 trials.
-- It is over with 64 tasks, or after ten minutes. `arrivals` has that moment, too: "c name".
-- A lane that is shut waits in `shut_lanes:<limit>|<tenant>`, by the rank of its first task, and its tenant in `shut:<limit>`,
-- by its virtual start: a tenant with many lanes gets no more than one with a single lane. `opens` has the limits with such lanes, by
-- when they open; inf: when a task ends.

local function new_limits(prefix, now, turn)
  local MOST_ROUSED, MOST_STRIKES, TRIAL_MS = 64, 3, 600000
  local limits, known, given, freed = { wake = {}, wake_gpu = {}, roused = {} }, {}, {}, {}
  local roused, moved, given_count, owners = 0, 0, 0, {}
  local on_trial, has_closed, has_opens = false, nil, nil
  local settings, use, arrivals, closed = prefix .. 'limits', prefix .. 'use', prefix .. 'arrivals', prefix .. 'closed'
  local held, opens, of_lane = prefix .. 'held', prefix .. 'opens', {}

  -- The theoretical arrival times of tasks and units of limits.
  local function moments_of(names)
    local members = {}
    for n, name in ipairs(names) do members[2 * n - 1], members[2 * n] = 'r ' .. name, 'u ' .. name end
    return redis.call('ZMSCORE', arrivals, unpack(members))
  end

  -- Reads the state of limits.
  local function know(names)
    local wanted = {}
    for _, name in ipairs(names) do
      if known[name] == nil then known[name], wanted[#wanted + 1] = false, name end
    end
    if #wanted == 0 then return end
    local fields = {}
    for n, name in ipairs(wanted) do fields[2 * n - 1], fields[2 * n] = name, string.gsub(name, ':.*$', ':*') end
    local found, running = redis.call('HMGET', settings, unpack(fields)), redis.call('HMGET', use, unpack(wanted))
    -- Mostly no limit is closed, and no lane waits.
    if has_closed == nil then has_closed, has_opens = redis.call('HLEN', closed) > 0, redis.call('ZCARD', opens) > 0 end
    local shut = has_closed and redis.call('HMGET', closed, unpack(wanted)) or {}
    local waiting = has_opens and redis.call('ZMSCORE', opens, unpack(wanted)) or {}
    local moments = false  -- read only if one of them is a rate
    for n, name in ipairs(wanted) do
      local most, interval, burst, unit, unit_burst =
        string.match(found[2 * n - 1] or found[2 * n] or '', '^(%S+) (%S+) (%S+) (%S+) (%S+)')
      local one = {
        name = name, most = tonumber(most or 0) or 0, use = tonumber(running[n] or 0) or 0,
        interval = tonumber(interval or 0) or 0, burst = tonumber(burst or 0) or 0, at = 0,
        unit = tonumber(unit or 0) or 0, unit_burst = tonumber(unit_burst or 0) or 0, unit_at = 0,
        until_ms = 0, trial = 0, opens_at = tonumber(waiting[n] or 0), has_waiting = waiting[n] and true,
      }
      one.was = one.use
      if one.interval > 0 or one.unit > 0 then
        moments = moments or moments_of(wanted)
        one.at, one.unit_at = tonumber(moments[2 * n - 1] or 0), tonumber(moments[2 * n] or 0)
      end
      if shut[n] then
        local until_ms, trial, strikes, passed = string.match(shut[n], '^(%S+) (%S+) ?(%S*) ?(%S*)$')
        one.until_ms, one.trial, one.was_closed = tonumber(until_ms or 0) or 0, tonumber(trial or 0) or 0, true
        one.strikes, one.passed = tonumber(strikes or 0) or 0, tonumber(passed or 0) or 0
        if one.until_ms + TRIAL_MS <= now then one.until_ms, one.trial = 0, 0 end
      end
      known[name] = one
    end
  end

  local function names_in(text, names)
    names = names or {}
    for name in string.gmatch(text, '[^,]+') do names[#names + 1] = name end
    return names
  end

  -- The states of the limits of a lane, in the order of its name; nil for a lane without limits.
  function limits.states_of(lane)
    local states = of_lane[lane]
    if states then return states end
    local text = limits_text_of(lane)
    if not text then return nil end
    local names = names_in(text)
    know(names)
    states = {}
    for n, name in ipairs(names) do states[n] = known[name] end
    of_lane[lane] = states
    return states
  end

  -- How many tasks may start now, and if none, from when on; nil: when another task ends.
  local function room_of(one)
    if one.until_ms > now then return 0, one.until_ms end
    local room = 1000
    if one.most > 0 then room = one.most - one.use end
    if one.trial > 0 and one.trial - one.use < room then room = one.trial - one.use end
    if room <= 0 then return 0, nil end
    if one.interval > 0 then
      local early = one.at - now - one.burst
      if early > 0 then return 0, one.at - one.burst end
      room = math.min(room, 1 + math.floor(math.min(-early, one.burst) / one.interval))
    end
    if one.unit > 0 then
      if one.unit_at - now > one.unit_burst then return 0, one.unit_at - one.unit_burst end
      room = 1  -- a task may use any number of units
    end
    return room
  end

  local function numbers_of(costs)
    local numbers = {}
    for number in string.gmatch(costs, '[^,]+') do numbers[#numbers + 1] = tonumber(number) or 1 end
    return numbers
  end

  -- The first limit of a lane that has no room for a task now, or nil; and for how many tasks there is room.
  function limits.shut_of(states)
    local least = 1000
    for n = 1, #states do
      local room = room_of(states[n])
      if room <= 0 then return states[n], 0 end
      if room < least then least = room end
    end
    return nil, least
  end

  -- A task starts. `text` is "lane cost,units,units", with units in the order of the limits.
  function limits.charge(id, states, text)
    local numbers
    for n = 1, #states do
      local one = states[n]
      one.use, one.is_changed = one.use + 1, true
      if one.interval > 0 then one.at = math.max(one.at, now) + one.interval end
      if one.unit > 0 then
        numbers = numbers or numbers_of(string.match(text, '%S+$'))
        one.unit_at = math.max(one.unit_at, now) + (numbers[n + 1] or 1) * one.unit
      end
    end
    given[given_count + 1], given[given_count + 2], given_count = id, text, given_count + 2
  end

  -- Tasks have ended, or their leases have. Returns for each the lane and the costs, if it has limits.
  function limits.give_back(ids)
    local texts = {}
    for i = 1, #ids, 1000 do
      local last = math.min(i + 999, #ids)
      for n, text in ipairs(redis.call('HMGET', held, unpack(ids, i, last))) do texts[i + n - 1] = text end
    end
    local counts = {}
    for _, text in ipairs(texts) do
      if text then counts[text] = (counts[text] or 0) + 1 end
    end
    local names = {}
    for text in pairs(counts) do names_in(limits_text_of(string.match(text, '^%S+')), names) end
    know(names)  -- at once
    if names[1] then freed[#freed + 1] = ids end
    for text, count in pairs(counts) do
      for _, one in ipairs(limits.states_of(string.match(text, '^%S+'))) do
        one.use, one.is_changed, on_trial = math.max(0, one.use - count), true, on_trial or one.trial > 0
      end
    end
    return texts
  end

  -- A running task used other units than were charged. `deltas`: of the limits of `lane`, in their order.
  function limits.correct(lane, deltas)
    local numbers = numbers_of(deltas)
    for n, one in ipairs(limits.states_of(lane)) do
      local delta = numbers[n + 1] or 0
      if one.unit > 0 and delta ~= 0 then
        one.unit_at, one.is_changed, one.is_refunded = math.max(one.unit_at, now) + delta * one.unit, true, delta < 0
      end
    end
  end

  -- A task closes a limit for some time. Then one task at a time may start, and each one that completes lets one more.
  function limits.close(name, ms)
    know({ name })
    local one = known[name]
    -- Tasks that ran when the limit was closed may close it, too: that is no other trial.
    if one.trial > 0 and one.until_ms <= now then one.strikes = math.min(one.strikes + 1, MOST_STRIKES) end
    if one.trial == 0 then one.strikes = 0 end
    one.until_ms, one.trial, one.passed = math.max(one.until_ms, now + ms), 1, 0
    one.is_changed, one.is_closed = true, true
  end

  -- A task of limits on trial has completed.
  function limits.note_success(lane)
    for _, one in ipairs(limits.states_of(lane)) do
      if one.trial > 0 and one.until_ms <= now and not one.is_closed then
        one.passed, one.is_changed = one.passed + 1, true
        if one.passed >= 2 ^ one.strikes then one.trial, one.passed = one.trial + 1, 0 end
        -- 64 tasks at once: the limit has stood the trial.
        if one.trial > 64 then one.trial, one.until_ms = 0, 0 end
      end
    end
  end

  -- A lane waits for a limit, or an index of suspects. `start` is its tenant's place among the turns.
  function limits.park(key, one, start)
    if one.is_parked and one.is_parked[key] then return end
    local member = string.sub(key, #prefix + 1)
    local _, lane = parts_of_key(member)
    local tenant = lane and tenant_of(lane) or ''
    redis.call('ZCARD', prefix .. 'shut:' .. one.name)
    redis.call('ZCARD', shut_lanes_key(prefix, one.name, tenant))
    one.parked, one.is_parked = one.parked or {}, one.is_parked or {}
    one.is_parked[key] = true
    one.parked[#one.parked + 1] = { key = key, member = member, tenant = tenant, start = start }
    one.has_waiting, one.is_changed = true, true
  end

  -- Notes whose workers may find a task of a lane, or of the suspects, which waits for a limit with room.
  local function note_open(member)
    local base, for_gpu = base_of_index(prefix, (parts_of_key(member)) or member)
    limits[for_gpu and 'wake_gpu' or 'wake'][base] = true
  end

  -- The same for the first lane that waits for a limit.
  local function note_first(name)
    local tenant = redis.call('ZRANGE', prefix .. 'shut:' .. name, 0, 0)[1]
    local first = tenant and redis.call('ZRANGE', shut_lanes_key(prefix, name, tenant), 0, 0)[1]
    if first then note_open(first) end
  end

  -- A tenant whose lanes wait: its virtual start, and whether it is paused.
  local function owner_of(tenant)
    if not owners[tenant] then
      local _, is_paused = settings_of(redis.call('HGET', prefix .. 'tenants', tenant))
      owners[tenant] = { start = tonumber(redis.call('ZSCORE', prefix .. 'virtual', tenant) or 0), is_paused = is_paused }
    end
    return owners[tenant]
  end

  -- Lanes that waited for limits with room take turns again: returns them. They are written back at once, before the
  -- other changes of a script: if it ended then, nothing would be lost.
  function limits.rouse()
    local found = {}

    local function rouse_lane(member)
      local key = prefix .. member
      local index, lane = parts_of_key(key)
      local head = index and redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
      if head then
        local tenant = tenant_of(lane)
        redis.call('ZADD', limited_key(index, tenant), head, lane)
        if not owner_of(tenant).is_paused then
          redis.call('ZADD', turns_key(index), 'NX', least_start(index, turn), tenant)
          found[#found + 1] = { index = index, lane = lane, tenant = tenant }
        end
      elseif index then
        redis.call('ZREM', prefix .. 'lanes', member)
      end
      note_open(member)
      roused = roused + 1
    end

    -- Puts back the tenants that have moved on since their lanes were parked. Returns whether there are any.
    local function put_back(waiting, tenants)
      local is_any = false
      for n = 1, #tenants, 2 do
        local start = owner_of(tenants[n]).start
        if tonumber(tenants[n + 1]) < start and moved < MOST_ROUSED then
          redis.call('ZADD', waiting, start, tenants[n])
          is_any, moved = true, moved + 1
        end
      end
      return is_any
    end

    local function rouse_for(one)
      local room = one.has_waiting and math.min(room_of(one), MOST_ROUSED - roused) or 0
      if room <= 0 then return end
      local waiting = prefix .. 'shut:' .. one.name
      redis.call('ZREM', prefix .. 'leases', '')  -- a first write that a full memory does not refuse
      redis.call('ZADD', prefix .. 'never', 'XX', 0, '')  -- while a Cluster moves the queue, it refuses this
      repeat
        local tenants = redis.call('ZRANGE', waiting, 0, room - 1, 'WITHSCORES')
        if not put_back(waiting, tenants) then
          for n = 1, #tenants, 2 do
            local lanes = shut_lanes_key(prefix, one.name, tenants[n])
            local member = redis.call('ZRANGE', lanes, 0, 0)[1]
            if member then
              -- In this order: if a command is refused, the lane is in both places.
              rouse_lane(member)
              redis.call('ZREM', lanes, member)
              room = room - 1
            end
            if redis.call('ZCARD', lanes) == 0 then redis.call('ZREM', waiting, tenants[n]) end
          end
        end
      until #tenants == 0 or room <= 0
      one.has_waiting = redis.call('ZCARD', waiting) > 0
      one.is_changed, limits.roused[one.name] = true, true
    end
    for _, one in pairs(known) do rouse_for(one) end
    local due = redis.call('ZRANGEBYSCORE', opens, '-inf', now, 'LIMIT', 0, 8)
    know(due)
    for _, name in ipairs(due) do
      known[name].is_changed = true
      rouse_for(known[name])
    end
    return found
  end

  -- A trial with limits of its own has roused lanes, which is written. Takes over for which limits, and whose workers may
  -- find their tasks; all else of the trial is thrown away.
  function limits.take_roused(trial)
    for base in pairs(trial.wake) do limits.wake[base] = true end
    for base in pairs(trial.wake_gpu) do limits.wake_gpu[base] = true end
    for name in pairs(trial.roused) do
      know({ name })
      local one = known[name]
      one.has_waiting = one.parked and true or redis.call('ZCARD', prefix .. 'shut:' .. name) > 0
      one.is_changed = true
    end
  end

  -- Whether a task that is settled may have held places: also one that is unknown, whose key a person has deleted.
  local function may_hold(item) return item.accepted and item.was == 'processing' or item.answer == 'unknown' end

  -- Takes what settles give back. A limit on trial notes which tasks completed.
  function limits.settle(items)
    local ids, count = {}, 0
    for _, item in ipairs(items) do
      if may_hold(item) then count, ids[count + 1] = count + 1, item.id end
    end
    if count == 0 or redis.call('HLEN', held) == 0 then return end
    local texts, n = limits.give_back(ids), 0
    for _, item in ipairs(on_trial and items or {}) do
      if may_hold(item) then
        n = n + 1
        if texts[n] and item.accepted and item.status == 'completed' then limits.note_success(string.match(texts[n], '^%S+')) end
      end
    end
  end

  -- The earlier one of a due time, and of when a limit opens by itself.
  function limits.earlier_of(due)
    local opens_at = tonumber(redis.call('ZRANGE', opens, 0, 0, 'WITHSCORES')[2]) or math.huge
    if opens_at < math.huge and (not due or opens_at < tonumber(due)) then return opens_at end
    return due
  end

  -- Writes the changes. Notes whose workers may find tasks of limits with room. If this worker takes no more tasks
  -- (`is_full`), and a limit opens earlier than all others, another worker learns when.
  function limits.write(wake, wake_gpu, is_full)
    local earliest, opening = tonumber(redis.call('ZRANGE', opens, 0, 0, 'WITHSCORES')[2]) or math.huge, nil
    if earliest <= now then earliest = math.huge end
    for _, ids in ipairs(freed) do
      for i = 1, #ids, 1000 do redis.call('HDEL', held, unpack(ids, i, math.min(i + 999, #ids))) end
    end
    -- A value of more than 64 bytes makes the server keep a table: in the list of a small hash it would pass all tasks to
    -- find one.
    if given_count > 0 then given[2] = string.gsub(given[2], ' ', string.rep(' ', 64), 1) end
    for i = 1, given_count, AT_ONCE do
      redis.call('HSET', held, unpack(given, i, math.min(i + AT_ONCE - 1, given_count)))
    end
    local used, unused, later = {}, {}, {}
    for name, one in pairs(known) do
      if one.is_changed then
        if one.use == 0 and one.was > 0 then unused[#unused + 1] = name
        elseif one.use ~= one.was then used[#used + 1], used[#used + 2] = name, one.use end
        if one.at > now then later[#later + 1], later[#later + 2] = one.at, 'r ' .. name end
        if one.is_refunded and one.unit_at <= now then redis.call('ZREM', arrivals, 'u ' .. name) end
        if one.unit_at > now then later[#later + 1], later[#later + 2] = one.unit_at, 'u ' .. name end
        if one.trial > 0 then
          redis.call('HSET', closed, name, table.concat({ whole(one.until_ms), one.trial, one.strikes, one.passed }, ' '))
          if one.is_closed then later[#later + 1], later[#later + 2] = one.until_ms + TRIAL_MS, 'c ' .. name end
        elseif one.was_closed then redis.call('HDEL', closed, name) end
        for _, lane in ipairs(one.parked or {}) do
          local head = redis.call('ZRANGE', lane.key, 0, 0, 'WITHSCORES')[2]
          if head then
            redis.call('ZADD', shut_lanes_key(prefix, name, lane.tenant), head, lane.member)
            redis.call('ZADD', prefix .. 'shut:' .. name, lane.start, lane.tenant)
          end
        end
        if one.has_waiting then
          local room, opens_at = room_of(one)
          if room > 0 then
            note_first(name)
            opens_at = now
          end
          if opens_at and opens_at > now and opens_at < earliest then earliest, opening = opens_at, name end
          redis.call('ZADD', opens, opens_at or 'inf', name)
        elseif one.opens_at ~= 0 then
          redis.call('ZREM', opens, name)
        end
      end
    end
    if used[1] then redis.call('HSET', use, unpack(used)) end
    if unused[1] then redis.call('HDEL', use, unpack(unused)) end
    if later[1] then redis.call('ZADD', arrivals, unpack(later)) end
    -- Arrivals that lie in the past say nothing. A limit that is no longer used is gone.
    local past = redis.call('ZRANGEBYSCORE', arrivals, '-inf', now, 'LIMIT', 0, 100 + #later)
    if #past > 0 then redis.call('ZREM', arrivals, unpack(past)) end
    for _, member in ipairs(past) do
      if string.sub(member, 1, 2) == 'c ' then redis.call('HDEL', closed, string.sub(member, 3)) end
    end
    if opening and is_full then note_first(opening) end
    for base in pairs(limits.wake) do wake[base] = true end
    for base in pairs(limits.wake_gpu) do wake_gpu[base] = true end
  end

  return limits
end

-- Applies the lines of `used` whose settles were accepted: see settle.lua.
local function correct_costs(text, items, limits, turns)
  for what, number, name, value in string.gmatch(text, '(%l) (%d+) (%S+) (%S+)') do
    local item = items[tonumber(number)]
    if not item.accepted then
      -- A repeated settle counts once; a lost one does not count.
    elseif what == 'c' then
      limits.close(name, tonumber(value))
    else
      turns.correct(name, tonumber(string.match(value, '^[^,]+')))
      if limits_text_of(name) then limits.correct(name, value) end
    end
  end
end
