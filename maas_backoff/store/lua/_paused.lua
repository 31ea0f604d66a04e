-- The paused kinds, for scripts that tell them to users.

-- Names of the paused kinds and the times since which they are paused, in turn.
local function paused_kinds(prefix)
  local kinds, paused = redis.call('HGETALL', prefix .. 'kinds'), {}
  for n = 1, #kinds, 2 do
    if not is_open(kinds[n + 1]) then paused[#paused + 1], paused[#paused + 2] = kinds[n], kinds[n + 1] end
  end
  return paused
end
