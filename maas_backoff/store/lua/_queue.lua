-- The indexes of pending tasks: `scheduled` until they are due; then `ready`, a GPU's set, or `suspects`.
-- `suspects` has those tasks that were lost again, or whose batch failed.
-- Each kind of tasks has `ready`, `suspects`, GPU sets and markers of its own: a worker looks only at those of its kinds.

-- The beginning of the keys that a kind has of its own. The nameless kind is ''.
local function base_of(prefix, kind) return kind == '' and prefix or prefix .. 'k:' .. kind .. ':' end

-- The beginnings of the keys of all kinds of the queue, the nameless one first.
local function bases_of_all(prefix)
  local bases = { prefix }
  for n, kind in ipairs(redis.call('HKEYS', prefix .. 'kinds')) do bases[n + 1] = base_of(prefix, kind) end
  return bases
end

-- Whether a kind is not paused, by its value in the hash `kinds`.
local function is_open(stored) return not stored or stored == '' or string.sub(stored, 1, 1) == '~' end

-- The beginnings of the keys of a worker's kinds that are not paused, and the set of those of its paused ones. `kinds` are
-- names, separated by spaces; '-' is the nameless one, which costs no command. The hash `kinds` has for each kind the time
-- since which it is paused, or ''; or '~' and what a batch of the kind waits for: see _batch.lua.
local function open_bases_of(prefix, kinds)
  if kinds == '-' then return { prefix }, {} end
  local names, open, closed = {}, {}, {}
  for kind in string.gmatch(kinds, '%S+') do
    if kind == '~' then break end
    names[#names + 1] = kind
  end
  local paused_at = redis.call('HMGET', prefix .. 'kinds', unpack(names))
  for n, kind in ipairs(names) do
    local base = base_of(prefix, kind == '-' and '' or kind)
    if is_open(paused_at[n]) then open[#open + 1] = base else closed[base] = true end
  end
  return open, closed
end

-- A queue has at most so many kinds.
local MOST_KINDS = 200

-- 2020-01-01. A rank is ms since then with 12 bits of fraction; it stays exact in a double until 2089.
local EPOCH = 1577836800000

-- A task's rank: the earlier due, the lower, and a priority is a fixed head start. The fraction keeps tasks of one ms in
-- order; equal scores would sort by id. Returns a number: the server writes a whole number without loss, and faster than
-- string.format.
local function rank(due, head_start)
  return math.floor((due - EPOCH + head_start) * 4096)
end

-- A creation is a line "created_ms policy", or "created_ms policy priority head_start_ms demand" if these are not 0 and
-- '-', with " kind" at its end if the task has one, or with " kind lane costs" if it has a tenant or limits: the kind is
-- then '-' if it has none. After the line come the params. Returns head start, demand, kind and lane ('': none).
local function terms_of(created)
  local head_start, demand, kind, lane = string.match(created, '^%S+ %S+ %S+ (%S+) ([^ \n]+) ?([^ \n]*) ?([^ \n]*)[^\n]*\n')
  if kind == '-' then kind = '' end
  return tonumber(head_start or 0), demand or '-', kind or '', lane or ''
end

-- The first cost in a creation: the part of the tenant, and of a batch.
local function first_cost_of(created)
  return tonumber(string.match(created, '^%S+ %S+ %S+ %S+ %S+ %S+ %S* ([^,\n]+)') or 1) or 1
end

-- A demand is "<MiB>:<percent>". The first twelve demands have sets of their own. Further demands of similar size share
-- a set "~<MiB>": a power of two, from 512 on, that none of them is above. Up to 100,000 GiB there are 32 sets at most,
-- and 20 for each further kind: the sets of a kind are named "<kind>/<demand>".
local EXACT, SMALLEST = 12, 512

local function gpu_set(prefix, name) return prefix .. 'gpu:' .. name end

-- The kind, and the demand or the shared size, in the name of a set.
local function parts_of(name)
  local kind, demand = string.match(name, '^([^/]+)/(.+)$')
  return kind or '', demand or name
end

local function is_shared(name) return string.find(name, '~', 1, true) ~= nil end

-- A task's demand now: its field q if it ran out of memory before, else that of its creation.
local function demand_of(raised, created)
  if raised then return string.match(raised, '^%S+') end
  local _, demand = terms_of(created)
  return demand
end

-- The set in which a demand's tasks of a kind wait. Puts a name that is not listed yet into `new_names`, for list_gpu_sets.
local function gpu_set_for(prefix, kind, demand, new_names)
  local demands, own = prefix .. 'demands', kind == '' and '' or kind .. '/'
  local name = own .. demand
  if not new_names[name] and redis.call('HEXISTS', demands, name) == 0 then
    local count = redis.call('HLEN', demands)
    for _ in pairs(new_names) do count = count + 1 end
    if count >= EXACT then
      local memory, size = tonumber(string.match(demand, '^[^:]+')), SMALLEST
      while size < memory do size = 2 * size end
      name = own .. '~' .. whole(size)
    end
    new_names[name] = true
  end
  return gpu_set(prefix, name)
end

-- Lists the sets that gpu_set_for named first. For the writing part of a script.
local function list_gpu_sets(prefix, new_names)
  for name in pairs(new_names) do redis.call('HSET', prefix .. 'demands', name, '') end
end

-- All sets in which tasks wait for a GPU.
local function gpu_sets(prefix)
  local sets = redis.call('HKEYS', prefix .. 'demands')
  for n, name in ipairs(sets) do sets[n] = gpu_set(prefix, name) end
  return sets
end

-- All indexes of pending tasks.
local function pending_indexes(prefix, scheduled)
  local indexes = gpu_sets(prefix)
  indexes[#indexes + 1] = scheduled
  for _, base in ipairs(bases_of_all(prefix)) do
    indexes[#indexes + 1] = base .. 'ready'
    indexes[#indexes + 1] = base .. 'suspects'
  end
  return indexes
end

-- Removes empty sets from the list. After all ZADDs of a script, which has called HDEL and ZCARD before.
local function unlist_empty_gpu_sets(prefix)
  for _, name in ipairs(redis.call('HKEYS', prefix .. 'demands')) do
    local is_empty = redis.call('ZCARD', gpu_set(prefix, name)) == 0
    -- Tasks in lanes of the set: see _lanes.lua.
    if is_empty and not redis.call('HGET', prefix .. 'laned', 'gpu:' .. name) then
      redis.call('HDEL', prefix .. 'demands', name)
      redis.pcall('ZREM', gpu_set(prefix, name) .. ':turns', '')
    end
  end
end

-- When the first task of `scheduled` becomes due, and its kind. A worker learns when from its claims, and sleeps until
-- then. A task that comes later needs a wake-up only if the first one is of another kind, whose workers alone may be awake.
local function head_of(prefix, scheduled)
  local head = redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')
  if not head[1] then return math.huge, '' end
  if redis.pcall('HLEN', prefix .. 'kinds') == 0 then return tonumber(head[2]), '' end
  local created = redis.pcall('HGET', prefix .. 't:' .. head[1], 'p')
  if type(created) ~= 'string' then return tonumber(head[2]), false end
  local _, _, kind = terms_of(created)
  return tonumber(head[2]), kind
end

-- Wakes one sleeping worker for each kind of `wake`, and one with GPUs for each of `wake_gpu`: sets of keys' beginnings.
-- Nobody is woken for `closed` ones, of paused kinds: nobody would find a task to claim.
local function wake_bases(wake, wake_gpu, closed)
  for base in pairs(closed or {}) do wake[base], wake_gpu[base] = nil, nil end
  for base in pairs(wake) do redis.pcall('ZADD', base .. 'marker', 0, '0') end
  for base in pairs(wake_gpu) do redis.pcall('ZADD', base .. 'gpu_marker', 0, '0') end
end

-- Collects, per index, the scores and members of one ZADD, or the members of one ZREM.
local function append(lists, key, first, second)
  local list = lists[key]
  if not list then
    list = {}
    lists[key] = list
  end
  list[#list + 1] = first
  if second then list[#list + 1] = second end
end

-- Lua gives a command 8,000 values at most.
local AT_ONCE = 1000

local function add_all(to)
  for key, args in pairs(to) do
    for i = 1, #args, AT_ONCE do redis.call('ZADD', key, unpack(args, i, math.min(i + AT_ONCE - 1, #args))) end
  end
end

local function remove_all(from)
  for key, ids in pairs(from) do
    for i = 1, #ids, AT_ONCE do redis.call('ZREM', key, unpack(ids, i, math.min(i + AT_ONCE - 1, #ids))) end
  end
end
