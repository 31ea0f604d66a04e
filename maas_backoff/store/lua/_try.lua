-- Trying the indexes that a script is going to change.

-- Writes nothing to each of these indexes. A refusal of ZADD or ZREM, and an index of another type, end the script here,
-- before its first real write. The ZREMs come first: they and what follows are not refused when the memory is full.
local function try_indexes(from, to)
  for key in pairs(from) do redis.call('ZREM', key, '') end
  for key in pairs(to) do redis.call('ZADD', key, 'XX', 0, '') end
end
