-- The names of who paused the queue, a kind or a tenant, for scripts that tell it to users. pause.lua and tenant.lua write the names.

-- Fields of `paused_by` and names in turn. `pauses` are fields and the times since which they are paused, in turn. A name
-- with another time is left out: an older release has ended its pause.
local function names_of_pauses(prefix, pauses)
  local named, key = {}, prefix .. 'paused_by'
  if #pauses == 0 or redis.call('HLEN', key) == 0 then return named end
  for n = 1, #pauses, 2 do
    local since, by = string.match(redis.call('HGET', key, pauses[n]) or '', '^(%d+) (.+)$')
    if since == pauses[n + 1] then named[#named + 1], named[#named + 2] = pauses[n], by end
  end
  return named
end
