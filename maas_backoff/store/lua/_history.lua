-- What has happened, in numbers: a hash a minute for the charts, and one of all time, both of the names that domain/history.py makes.

local KEPT_S, MOST_NAMES = 7200, 400

-- Counts what a worker has tallied, and the tasks that were finished. For the writing part of a script.
local function note_history(prefix, totals, now, tally, finished)
  local minute, bounded = prefix .. 'h:' .. math.floor(now / 60000), nil
  local function count(name, by)
    redis.call('HINCRBY', minute, name, by)
    redis.call('HINCRBY', totals, name, by)
  end
  for name, by in string.gmatch(tally, '(%S+) (%d+)') do
    -- The names of errors come from users.
    if string.sub(name, 1, 2) == 'e:' then
      if bounded == nil then bounded = redis.call('HLEN', totals) >= MOST_NAMES end
      if bounded and redis.call('HEXISTS', totals, name) == 0 then name = 'e:other' end
    end
    count(name, by)
  end
  for status, by in pairs(finished) do redis.call('HINCRBY', minute, status, by) end  -- `meta` has their totals
  redis.call('EXPIRE', minute, KEPT_S)
end
