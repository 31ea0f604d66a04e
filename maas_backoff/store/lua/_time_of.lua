-- The queue's clock, for scripts that are not called for each task.

local function queue_time_of(given, meta)
  local fields = redis.call('HMGET', meta, 'ahead', 'reaped_at')
  return queue_time(clock(given), fields[1], fields[2])
end

-- What a script returns for the time: "now", or "now ahead" where the clock is ahead of the server's. Times are shown to
-- users by the server's clock.
local function told_time(now, ahead) return ahead and whole(now) .. ' ' .. ahead or whole(now) end
