-- Tenants and limits, for scripts that tell them to users. domain/shares.py decides by a limit's row as _limits.lua does.

-- A row for each limit: its name, the name of its setting, the setting, its running tasks, the arrival times of the next
-- task and of the next unit, and how a task closed it. '' stands for a value that is missing.
local function rows_of_limits(prefix, names)
  local rows, step = {}, 500
  for first = 1, #names, step do
    local some, fields, times = {}, {}, {}
    for n = first, math.min(first + step - 1, #names) do
      local name, at = names[n], 2 * #some + 1
      fields[at], fields[at + 1] = name, (string.gsub(name, ':.*$', ':*'))
      times[at], times[at + 1] = 'r ' .. name, 'u ' .. name
      some[#some + 1] = name
    end
    local settings, use = redis.call('HMGET', prefix .. 'limits', unpack(fields)), redis.call('HMGET', prefix .. 'use', unpack(some))
    local arrivals, closed = redis.call('ZMSCORE', prefix .. 'arrivals', unpack(times)), redis.call('HMGET', prefix .. 'closed', unpack(some))
    for n, name in ipairs(some) do
      local own, class = settings[2 * n - 1], settings[2 * n]
      rows[#rows + 1] = {
        name, own and name or class and fields[2 * n] or '', own or class or '', use[n] or '',
        arrivals[2 * n - 1] or '', arrivals[2 * n] or '', closed[n] or '',
      }
    end
  end
  return rows
end

-- Collects the tenants and the limits of waiting tasks.
local function new_shares(prefix)
  local shares, tenants, limits, seen, rivals = {}, {}, {}, {}, {}
  -- Tenants, and limited lanes of a tenant, that an estimate looks at.
  local MOST_RIVALS, MOST_LANES = 64, 8

  local function note(list, name)
    seen[list] = seen[list] or {}
    if not seen[list][name] then list[#list + 1], seen[list][name] = name, true end
  end

  function shares.add(lane)
    local tenant = tenant_of(lane)
    if tenant ~= '' then note(tenants, tenant) end
    for name in string.gmatch(limits_text_of(lane) or '', '[^,]+') do note(limits, name) end
  end

  -- The tenants that take turns in an index: tasks outside of lanes are those of the tenant ''.
  local function rivals_in(index)
    if rivals[index] then return rivals[index] end
    local turns, nameless = turns_key(index), redis.call('ZCARD', index)
    local names, count = redis.call('ZRANGE', turns, 0, MOST_RIVALS - 1), redis.call('ZCARD', turns)
    if nameless > 0 and not redis.call('ZSCORE', turns, '') then
      count = count + 1
      names[#names + 1] = ''
    end
    local found = { count = count }
    local waiting = names[1] and redis.call('HMGET', prefix .. 'waiting', unpack(names))
    local settings = names[1] and redis.call('HMGET', prefix .. 'tenants', unpack(names))
    for n, name in ipairs(names) do
      found[n] = { name = name, waiting = name == '' and nameless or tonumber(waiting[n] or 0), weight = settings_of(settings[n]) }
    end
    rivals[index] = found
    return found
  end

  -- "own others tenants" of a task in a lane: how many tasks of its tenant come first; about how many of other tenants, if
  -- each gets its share by weight, and all tasks cost the same; and how many tenants take turns. False: it is not there.
  function shares.place_of(index, lane, id)
    local key, tenant = lane_key(index, lane), tenant_of(lane)
    local rank = redis.call('ZSCORE', key, id)
    if not rank then return false end
    local own, keys = redis.call('ZRANK', key, id), { tenant == '' and index or lane_key(index, tenant) }
    local limited = redis.call('ZRANGE', limited_key(index, tenant), 0, MOST_LANES - 1)
    for n, name in ipairs(limited) do keys[n + 1] = lane_key(index, name) end
    for _, other in ipairs(keys) do
      if other ~= key then own = own + redis.call('ZCOUNT', other, '-inf', '(' .. rank) end
    end
    local found, others = rivals_in(index), 0
    local weight = settings_of(redis.call('HGET', prefix .. 'tenants', tenant))
    for _, rival in ipairs(found) do
      if rival.name ~= tenant then others = others + math.min(rival.waiting, own * rival.weight / weight) end
    end
    if found.count > #found then others = others * found.count / #found end
    return table.concat({ whole(own), whole(others), whole(found.count) }, ' ')
  end

  -- The names of the paused ones among the tenants, and the rows of the limits.
  function shares.read()
    local paused = {}
    for first = 1, #tenants, 500 do
      local last = math.min(first + 499, #tenants)
      for n, stored in ipairs(redis.call('HMGET', prefix .. 'tenants', unpack(tenants, first, last))) do
        local _, is_paused = settings_of(stored)
        if is_paused then paused[#paused + 1] = tenants[first + n - 1] end
      end
    end
    return paused, rows_of_limits(prefix, limits)
  end

  return shares
end
