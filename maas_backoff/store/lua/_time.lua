-- The queue's clock never runs backwards: leases, delays, retries, the registry and the history are times of this clock.

-- `time` is the server's. `ahead` and `seen` are the fields `ahead` and `reaped_at` of meta. reap.lua notes the time that it has seen last. A server
-- whose clock is behind that was set back, or is another server after a failover: this clock stands still until the next
-- call of reap.lua, which puts the difference into `ahead` for good. A shift of every stored time instead would take a walk
-- over all tasks, and would move absolute due times, too.
local function queue_time(time, ahead, seen)
  return math.max(time + (tonumber(ahead or 0) or 0), tonumber(seen or 0) or 0)
end

-- The same, for a script that needs no other field of meta.
local function queue_time_of(given, meta)
  local fields = redis.call('HMGET', meta, 'ahead', 'reaped_at')
  return queue_time(clock(given), fields[1], fields[2])
end

-- What a script returns for the time: "now", or "now ahead" where the clock is ahead of the server's. Times are shown to
-- users by the server's clock.
local function told_time(now, ahead)
  if not ahead or tonumber(ahead) == 0 then return whole(now) end
  return whole(now) .. ' ' .. ahead
end
