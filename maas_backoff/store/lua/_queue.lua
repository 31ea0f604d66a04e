-- Where pending tasks wait: scheduled until they are due; then ready, or suspects (last attempt lost), or gpu (need a GPU).

-- 2020-01-01. A rank is ms since then with 12 bits of fraction; it stays exact in a double until 2089.
local EPOCH = 1577836800000

-- Waiting time is rank: the earlier due, the further ahead, and a priority is a fixed head start. The fraction keeps
-- tasks of one ms in order; equal scores would sort by id.
local function rank(due, head_start)
  return string.format('%.0f', math.floor((due - EPOCH + head_start) * 4096))
end

-- What a task is created with is a line "created_ms policy", or "created_ms policy priority head_start_ms class" where
-- these are not 0 and '-', and its params.
local function head_start_and_class(created)
  local head_start, class = string.match(created, '^%S+ %S+ %S+ (%S+) (%S+)\n')
  return tonumber(head_start or 0), class or '-'
end

-- Collects, per index, what one ZADD (scores and members) or one ZREM (members) is to carry.
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
