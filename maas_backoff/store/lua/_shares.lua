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

-- Collects the tenants and the limits of waiting tasks. `turn` is the queue's virtual time: see _turns.lua.
local function new_shares(prefix, turn)
  local shares, tenants, limits, seen, rivals = {}, {}, {}, {}, {}
  -- Tenants, and limited lanes of a tenant, that an estimate looks at.
  local MOST_RIVALS, MOST_LANES = 64, 8

  local function note(list, name)
    local key = (list == tenants and 't ' or 'l ') .. name
    if not seen[key] then list[#list + 1], seen[key] = name, true end
  end

  function shares.add(lane)
    if tenant_of(lane) ~= '' then note(tenants, tenant_of(lane)) end
    for name in string.gmatch(limits_text_of(lane) or '', '[^,]+') do note(limits, name) end
  end

  -- The tenants whose turn in an index is next, with the tasks outside of lanes as those of the tenant ''.
  local function rivals_in(index)
    if rivals[index] then return rivals[index] end
    local names, has_nameless = redis.call('ZRANGE', turns_key(index), 0, MOST_RIVALS - 1), false
    local found = { count = redis.call('ZCARD', turns_key(index)), looked = #names }
    for _, name in ipairs(names) do has_nameless = has_nameless or name == '' end
    if not has_nameless then names[#names + 1] = '' end
    local starts, settings = redis.call('ZMSCORE', prefix .. 'virtual', unpack(names)), redis.call('HMGET', prefix .. 'tenants', unpack(names))
    local waiting = redis.call('HMGET', prefix .. 'waiting', unpack(names))
    for n, name in ipairs(names) do
      found[n] = { name = name, start = math.max(turn, tonumber(starts[n] or 0)), waiting = tonumber(waiting[n] or 0) }
      found[n].weight = settings_of(settings[n])
      if name == '' then found[n].waiting = redis.call('ZCARD', index) end
    end
    rivals[index] = found
    return found
  end

  -- "own others": how many of its tenant's tasks come before a task of a lane, and about how many of other tenants, if all
  -- cost as much as this one. False for a task that does not wait in that lane.
  function shares.place_of(index, lane, id, created)
    local key, tenant = lane_key(index, lane), tenant_of(lane)
    local rank = redis.call('ZSCORE', key, id)
    if not rank then return false end
    local own, others = redis.call('ZRANK', key, id), 0
    local keys = { tenant == '' and index or lane_key(index, tenant) }
    for n, name in ipairs(redis.call('ZRANGE', limited_key(index, tenant), 0, MOST_LANES - 1)) do keys[n + 1] = lane_key(index, name) end
    for _, other in ipairs(keys) do
      if other ~= key then own = own + redis.call('ZCOUNT', other, '-inf', '(' .. rank) end
    end
    local cost = tonumber(string.match(created, '^%S+ %S+ %S+ %S+ %S+ %S+ %S+ ([^,%s]+)') or 1) * 1000
    local weight = settings_of(redis.call('HGET', prefix .. 'tenants', tenant))
    local start = math.max(turn, tonumber(redis.call('ZSCORE', prefix .. 'virtual', tenant) or 0)) + own * cost / weight
    local found = rivals_in(index)
    for _, rival in ipairs(found) do
      if rival.name ~= tenant and rival.start < start then
        others = others + math.min(rival.waiting, math.ceil((start - rival.start) * rival.weight / cost))
      end
    end
    if found.count > found.looked then others = others * found.count / found.looked end
    return whole(own) .. ' ' .. whole(others)
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
