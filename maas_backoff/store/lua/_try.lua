-- A trial of the indexes that a script will change.

-- Calls ZREM and ZADD on each index without a change. A missing right, or an index of another type, ends the script here,
-- before its first real write. The ZREMs come first: a server whose memory is full refuses neither them nor later writes.
local function try_indexes(from, to)
  for key in pairs(from) do redis.call('ZREM', key, '') end
  for key in pairs(to) do redis.call('ZADD', key, 'XX', 0, '') end
end
