-- The queue's clock never runs backwards: leases, delays, retries, the registry and the history are times of this clock.

-- `time` is the server's. `ahead` and `seen` are the fields `ahead` and `reaped_at` of meta. reap.lua notes the time that
-- it has seen last. A server whose clock is behind that was set back, or is another server after a failover: this clock
-- stands still until the next call of reap.lua, which puts the difference into `ahead` for good. A shift of every stored
-- time instead would take a walk over all tasks, and would move absolute due times, too.
local function queue_time(time, ahead, seen)
  return math.max(time + (ahead or 0), tonumber(seen or 0))
end
