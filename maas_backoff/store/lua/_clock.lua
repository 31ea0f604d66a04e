-- Two clocks: the server's, and the queue's, which never runs backwards.

-- The server's time in ms with a fraction, or a test's time. Read once: TIME advances within a script on Redis.
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return time[1] * 1000 + time[2] / 1000
end

local function whole(number) return string.format('%.0f', math.floor(number)) end
