-- The queue's clock, for scripts that are not called for each task.

local function queue_time_of(given, meta)
  local fields = redis.call('HMGET', meta, 'ahead', 'reaped_at')
  return queue_time(clock(given), fields[1], fields[2])
end

-- The time in a reply: "now", or "now ahead" if the clock is ahead of the server's. Users see times by the server's clock.
local function reply_time(now, ahead) return ahead and whole(now) .. ' ' .. ahead or whole(now) end
