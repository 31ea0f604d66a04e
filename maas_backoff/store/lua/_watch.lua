-- A client watches tasks: their changes are published. See _watched.lua.

-- Publishes changes of the tasks for watch_ms. The first write is one that a full memory does not refuse.
local function watch(watched, ids, now, watch_ms)
  local watch_s = math.ceil(watch_ms / 1000)
  redis.call('ZREM', watched, '')
  -- Each command is tried before the first real write: without EXPIRE, `watched` would be kept for ever.
  redis.call('ZADD', watched, 'XX', 0, '')
  redis.call('EXPIRE', watched, watch_s)
  redis.call('ZREMRANGEBYSCORE', watched, '-inf', now)
  for _, id in ipairs(ids) do redis.call('ZADD', watched, whole(now + watch_ms), id) end
  redis.call('EXPIRE', watched, watch_s)
end
