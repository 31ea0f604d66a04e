-- What has happened, in numbers: a hash a minute for the charts, and one of all time, both of the names that domain/history.py makes.

local KEPT_S, MOST_NAMES = 7200, 400

-- Counts what a worker has tallied, and the tasks that were finished. For the writing part of a script, which must not
-- end half-way: a key that somebody has written over is left alone.
local function note_history(prefix, totals, now, tally, finished)
  local minute, bounded = prefix .. 'h:' .. math.floor(now / 60000), nil
  local function count(name, by)
    redis.pcall('HINCRBY', minute, name, by)
    redis.pcall('HINCRBY', totals, name, by)
  end
  for name, by in string.gmatch(tally, '(%S+) (%d+)') do
    -- The names of errors come from users.
    if string.sub(name, 1, 2) == 'e:' then
      if bounded == nil then
        local names = redis.pcall('HLEN', totals)
        bounded = type(names) ~= 'number' or names >= MOST_NAMES
      end
      if bounded and redis.pcall('HEXISTS', totals, name) ~= 1 then name = 'e:other' end
    end
    count(name, by)
  end
  for status, by in pairs(finished) do redis.pcall('HINCRBY', minute, status, by) end  -- `meta` has their totals
  redis.call('EXPIRE', minute, KEPT_S)
end
