-- The history by kind and by tenant: a hash for each minute, and one for ten minutes. domain/breakdown.py reads them.
-- The field of a name is "completed failed retried ms", and then, if another name had its place, how many settles that one
-- had. The field '*' is the sum of the names that lost their place.

-- Counts the settles of a batch request: lines "k name completed failed retried ms" of a kind, "t …" of a tenant. For the
-- writing part of a script, as note_history. All in one function: a script has 200 local names at most.
local function note_breakdown(prefix, now, lines)
  local MOST_PLACES, OTHER_NAMES, NOTHING = 32, '*', { 0, 0, 0, 0 }

  -- Reads a field: a list of four numbers, and how many settles the place had before. A person may have overwritten it.
  local function numbers_of(stored)
    local completed, failed, retried, ms, before = string.match(stored or '', '^(%d+) (%d+) (%d+) (%d+) ?(%d*)$')
    if not completed then return NOTHING, 0 end
    return { tonumber(completed), tonumber(failed), tonumber(retried), tonumber(ms) }, tonumber(before) or 0
  end

  local function sum_of(numbers, more)
    local sum = {}
    for n = 1, 4 do sum[n] = numbers[n] + more[n] end
    return sum
  end

  local function put(set, name, numbers, before)
    local text = {}
    for n = 1, 4 do text[n] = whole(numbers[n]) end
    if before > 0 then text[5] = whole(before) end
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
      else places[#places + 1] = { name = flat[n], numbers = found, score = found[1] + found[2] + found[3] + before } end
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
      places[least] = { name = name, numbers = more, before = before, score = before + more[1] + more[2] + more[3], is_new = true }
    end
    for _, place in ipairs(places) do
      if place.is_new then put(set, place.name, place.numbers, place.before) end
    end
    if others ~= NOTHING then put(set, OTHER_NAMES, others, 0) end
    if #gone > 0 then redis.pcall('HDEL', key, unpack(gone)) end
    redis.pcall('HSET', key, unpack(set))
  end

  -- Adds numbers by name to one step.
  local function note_step(key, kept_s, names, numbers)
    local stored, set, new_names, new_numbers = redis.pcall('HMGET', key, unpack(names)), {}, {}, {}
    if stored.err then return end
    for n, name in ipairs(names) do
      if stored[n] then
        local found, before = numbers_of(stored[n])
        put(set, name, sum_of(found, numbers[n]), before)
      else
        new_names[#new_names + 1], new_numbers[#new_numbers + 1] = name, numbers[n]
      end
    end
    if #set > 0 then redis.pcall('HSET', key, unpack(set)) end
    if #new_names == 0 then return end
    local is_first = redis.pcall('HLEN', key) == 0
    give_places(key, new_names, new_numbers)
    if is_first then redis.pcall('EXPIRE', key, kept_s) end
  end

  local by, steps = {}, { k = { prefix .. 'hk:', prefix .. 'hk10:' }, t = { prefix .. 'ht:', prefix .. 'ht10:' } }
  for of, name, numbers in string.gmatch(lines, '([kt]) (%S+) (%d+ %d+ %d+ %d+)') do
    local found = by[of] or { names = {}, numbers = {} }
    by[of], found.names[#found.names + 1], found.numbers[#found.numbers + 1] = found, name, numbers_of(numbers)
  end
  for of, found in pairs(by) do
    note_step(steps[of][1] .. math.floor(now / 60000), 7200, found.names, found.numbers)
    note_step(steps[of][2] .. math.floor(now / 600000), 90000, found.names, found.numbers)
  end
end
