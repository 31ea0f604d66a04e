-- The history by kind and by tenant: a hash for each minute, and one for ten minutes. domain/breakdown.py reads them.
-- The field of a name is "completed failed cancelled retried ms", and then, if another name had its place, how many settles
-- that one had. The field '*' is the sum of the names that lost their place.

-- Adds up the accepted settles of each kind and of each tenant. `lines` has "<number> <kind> <tenant> <ms>" of the settles that
-- their sender knows more of, counted from 1. The terms of an overdue task are in its creation. A worker adds up its own
-- settles, and sends "k <kind> <numbers>" and "t <tenant> <numbers>" in a call without settles. Returns nil if there is nothing
-- to add; else a function for the writing part of a script, as note_history. All in one function: a script has 200 local names
-- at most.
local function breakdown_of(items, lines)
  local MOST_PLACES, MANY, OTHER_NAMES, NOTHING = 32, 16, '*', { 0, 0, 0, 0, 0 }
  local COLUMNS = { completed = 1, failed = 2, cancelled = 3 }

  -- The column of an accepted settle: 4 for a comeback by a retry, nil for what is neither an end nor a retry.
  local function column_of(item)
    return COLUMNS[item.status] or item.status == 'pending' and string.find(item.tally, '^retried') and 4
  end

  -- Reads a field: a list of five numbers, and how many settles the place had before. A person may have overwritten it.
  local function numbers_of(stored)
    local completed, failed, cancelled, retried, ms, before =
      string.match(stored or '', '^(%d+) (%d+) (%d+) (%d+) (%d+) ?(%d*)$')
    if not completed then return NOTHING, 0 end
    local numbers = { tonumber(completed), tonumber(failed), tonumber(cancelled), tonumber(retried), tonumber(ms) }
    return numbers, tonumber(before) or 0
  end

  local by = {}
  local function add(of, name, more)
    if name == '' then return end
    local found = by[of] or { names = {}, numbers = {}, place = {}, total = { 0, 0, 0, 0, 0 } }
    by[of] = found
    local place = found.place[name]
    if not place then
      place = #found.names + 1
      found.place[name], found.names[place], found.numbers[place] = place, name, { 0, 0, 0, 0, 0 }
    end
    local numbers, total = found.numbers[place], found.total
    for n = 1, 5 do numbers[n], total[n] = numbers[n] + more[n], total[n] + more[n] end
  end

  local function count(kind, tenant, column, ms)
    local numbers = { 0, 0, 0, 0, column == 3 and 0 or ms }
    numbers[column] = 1
    add('k', kind, numbers)
    add('t', tenant, numbers)
  end

  local of_worker, has_line = string.find(lines, '^[kt] '), {}
  for of, name, numbers in string.gmatch(of_worker and lines or '', '([kt]) (%S+) ([%d ]+)') do
    add(of, name, (numbers_of(numbers)))
  end
  for n, kind, tenant, ms in string.gmatch(of_worker and '' or lines, '(%d+) (%S*) (%S*) (%d+)') do
    n = tonumber(n)
    has_line[n] = true
    local item = items[n]
    local column = item and item.accepted and column_of(item)
    if column then count(kind, tenant, column, ms) end
  end
  for n, item in ipairs(items) do
    if item.ended and item.accepted and item.kind ~= 'lease' and not has_line[n] then
      local _, _, kind, lane = terms_of(item.created)
      count(kind, tenant_of(lane), 3, 0)
    end
  end
  if not next(by) then return nil end

  local function sum_of(numbers, more)
    local sum = {}
    for n = 1, 5 do sum[n] = numbers[n] + more[n] end
    return sum
  end

  local function settles_in(numbers) return numbers[1] + numbers[2] + numbers[3] + numbers[4] end

  local function put(set, name, numbers, before)
    local text = {}
    for n = 1, 5 do text[n] = whole(numbers[n]) end
    if before > 0 then text[6] = whole(before) end
    set[#set + 1] = name
    set[#set + 1] = table.concat(text, ' ')
  end

  -- Gives places to new names: each takes that of the name with the fewest settles, and begins with its count, so that a
  -- busy name stays ("space-saving", Metwally et al. 2005).
  local function give_places(key, names, numbers)
    local flat, places, others, gone, set = redis.pcall('HGETALL', key), {}, NOTHING, {}, {}
    for n = 1, #flat, 2 do
      local found, before = numbers_of(flat[n + 1])
      if flat[n] == OTHER_NAMES then others = found
      else places[#places + 1] = { name = flat[n], numbers = found, score = settles_in(found) + before } end
    end
    for n, name in ipairs(names) do
      local more, least = numbers[n], #places + 1
      if #places >= MOST_PLACES then
        least = 1
        for p, place in ipairs(places) do
          if place.score < places[least].score then least = p end
        end
      end
      local old = places[least]
      if old then others = sum_of(others, old.numbers) end
      if old and not old.is_new then gone[#gone + 1] = old.name end
      local before = old and old.score or 0
      places[least] = { name = name, numbers = more, before = before, score = before + settles_in(more), is_new = true }
    end
    for _, place in ipairs(places) do
      if place.is_new then put(set, place.name, place.numbers, place.before) end
    end
    if others ~= NOTHING then put(set, OTHER_NAMES, others, 0) end
    if #gone > 0 then redis.pcall('HDEL', key, unpack(gone)) end
    redis.pcall('HSET', key, unpack(set))
  end

  local function take_off(sum, less)
    for n = 1, 5 do sum[n] = sum[n] - less[n] end
  end

  -- Adds numbers by name to one step. Of many names without a place, most would try for one in vain, and the next ones would
  -- take it from the others. While all places are taken, they count among the others at once: but for those with a large part
  -- of the settles, and in one ms of 32. A busy name comes again.
  local function note_step(key, kept_s, now, found)
    local names, numbers, set, new_names, new_numbers = found.names, found.numbers, {}, {}, {}
    local stored, rest = redis.pcall('HMGET', key, unpack(names)), nil
    if stored.err then return end
    if #names > MANY and math.floor(now) % 32 > 0 and redis.pcall('HLEN', key) >= MOST_PLACES then
      rest = { unpack(found.total) }
    end
    for n, name in ipairs(names) do
      if stored[n] then
        local old, before = numbers_of(stored[n])
        put(set, name, sum_of(old, numbers[n]), before)
        if rest then take_off(rest, numbers[n]) end
      elseif not rest or settles_in(numbers[n]) > 1 and settles_in(numbers[n]) * MANY > #names then
        new_names[#new_names + 1], new_numbers[#new_numbers + 1] = name, numbers[n]
        if rest then take_off(rest, numbers[n]) end
      end
    end
    if rest and settles_in(rest) > 0 then
      put(set, OTHER_NAMES, sum_of((numbers_of(redis.pcall('HGET', key, OTHER_NAMES))), rest), 0)
    end
    if #set > 0 then redis.pcall('HSET', key, unpack(set)) end
    if #new_names == 0 then return end
    local is_first = redis.pcall('HLEN', key) == 0
    give_places(key, new_names, new_numbers)
    if is_first then redis.pcall('EXPIRE', key, kept_s) end
  end

  return function(prefix, now)
    local steps = { k = { prefix .. 'hk:', prefix .. 'hk10:' }, t = { prefix .. 'ht:', prefix .. 'ht10:' } }
    for of, found in pairs(by) do
      note_step(steps[of][1] .. math.floor(now / 60000), 7200, now, found)
      note_step(steps[of][2] .. math.floor(now / 600000), 90000, now, found)
    end
  end
end
