-- The queue's clock never runs backwards: leases, delays, retries, the registry and the history are times of this clock.

-- `time` is the server's. `ahead` and `seen` are the fields `ahead` and `reaped_at` of meta. reap.lua notes its last time.
-- If the server's clock is behind that, it was set back, or the server is another one after a failover. This clock then
-- stands still until the next call of reap.lua, which adds the difference to `ahead` for good. The alternative, to shift
-- every stored time, would read all tasks, and would shift absolute due times, too.
local function queue_time(time, ahead, seen)
  return math.max(time + (ahead or 0), tonumber(seen or 0))
end
