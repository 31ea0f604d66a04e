-- The indexes of pending tasks: `scheduled` until they are due; then `ready`, `suspects` (last attempt lost) or a GPU's set.

-- 2020-01-01. A rank is ms since then with 12 bits of fraction; it stays exact in a double until 2089.
local EPOCH = 1577836800000

-- A task's rank: the earlier due, the lower, and a priority is a fixed head start. The fraction keeps tasks of one ms in
-- order; equal scores would sort by id. Returns a number: the server writes a whole number without loss, and faster than
-- string.format.
local function rank(due, head_start)
  return math.floor((due - EPOCH + head_start) * 4096)
end

-- A creation is a line "created_ms policy", or "created_ms policy priority head_start_ms demand" if these are not 0 and
-- '-', and then the params.
local function head_start_and_demand(created)
  local head_start, demand = string.match(created, '^%S+ %S+ %S+ (%S+) (%S+)\n')
  return tonumber(head_start or 0), demand or '-'
end

-- A demand is "<MiB>:<percent>". The first twelve demands have sets of their own. Further demands of similar size share
-- a set "~<MiB>": a power of two, from 512 on, that none of them is above. Up to 100,000 GiB there are 32 sets at most.
local EXACT, SMALLEST = 12, 512

local function gpu_set(prefix, name) return prefix .. 'gpu:' .. name end

local function is_shared(name) return string.sub(name, 1, 1) == '~' end

-- A task's demand now: its field q if it ran out of memory before, else that of its creation.
local function demand_of(raised, created)
  if raised then return string.match(raised, '^%S+') end
  local _, demand = head_start_and_demand(created)
  return demand
end

-- The set in which a demand's tasks wait. Puts a name that is not listed yet into `new_names`, for list_gpu_sets.
local function gpu_set_for(prefix, demand, new_names)
  local demands, name = prefix .. 'demands', demand
  if not new_names[demand] and redis.call('HEXISTS', demands, demand) == 0 then
    local count = redis.call('HLEN', demands)
    for _ in pairs(new_names) do count = count + 1 end
    if count >= EXACT then
      local memory, size = tonumber(string.match(demand, '^[^:]+')), SMALLEST
      while size < memory do size = 2 * size end
      name = '~' .. whole(size)
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

-- Removes empty sets from the list. After all ZADDs of a script, which has called HDEL and ZCARD before.
local function unlist_empty_gpu_sets(prefix)
  for _, name in ipairs(redis.call('HKEYS', prefix .. 'demands')) do
    if redis.call('ZCARD', gpu_set(prefix, name)) == 0 then redis.call('HDEL', prefix .. 'demands', name) end
  end
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

local function add_all(to)
  for key, args in pairs(to) do redis.call('ZADD', key, unpack(args)) end
end

local function remove_all(from)
  for key, ids in pairs(from) do redis.call('ZREM', key, unpack(ids)) end
end
