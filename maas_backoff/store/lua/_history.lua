-- The history in numbers: a hash for each minute, and one for all time. domain/tally.py and domain/histogram.py make their
-- names. Longer steps, of ten minutes and of an hour, are copies of the numbers of all time when the step began: a reader
-- subtracts.

local KEPT_S, MOST_NAMES, OTHER = 7200, 400, 'e:other'

-- Drops the name of the error that was seen least recently, and adds its count to "other". Names that contain an id
-- therefore do not displace other names for good.
local function drop_oldest_name(minute, totals, names)
  local oldest = redis.pcall('ZRANGE', names, 0, 0)[1]
  if not oldest then return end
  for _, key in ipairs({ minute, totals }) do
    local number = redis.pcall('HGET', key, oldest)
    if type(number) == 'string' then
      redis.pcall('HINCRBY', key, OTHER, number)
      redis.pcall('HDEL', key, oldest)
    end
  end
  redis.pcall('ZREM', names, oldest)
end

-- Notes an error, and returns the name that it is counted under. Names come from users: MOST_NAMES of them are kept.
local function error_name(name, now, minute, totals, names)
  local is_new = redis.pcall('ZADD', names, whole(now), name)
  if type(is_new) ~= 'number' then return OTHER end
  if is_new == 1 then
    local count = redis.pcall('ZCARD', names)
    if count == 1 then  -- totals may have names from before `names` was kept
      local known = redis.pcall('HKEYS', totals)
      for _, other in ipairs(known) do
        if string.sub(other, 1, 2) == 'e:' and other ~= OTHER then redis.pcall('ZADD', names, 'NX', 0, other) end
      end
      count = redis.pcall('ZCARD', names)
    end
    for _ = MOST_NAMES + 1, type(count) == 'number' and count or 0 do drop_oldest_name(minute, totals, names) end
  end
  return name
end

-- Counts a worker's tally (lines "name number"), the outcomes of settled attempts (`tallied`: numbers by name), and the
-- finished tasks. For the writing part of a script, which must not end half-way: an overwritten key is left alone.
local function note_history(prefix, minute, totals, now, tally, tallied, finished)
  local names = prefix .. 'errors'
  local function count(name, by)
    if string.sub(name, 1, 2) == 'e:' and name ~= OTHER then name = error_name(name, now, minute, totals, names) end
    redis.pcall('HINCRBY', minute, name, by)
    redis.pcall('HINCRBY', totals, name, by)
  end
  for name, by in string.gmatch(tally, '(%S+) (%d+)') do count(name, by) end
  for what, by in pairs(tallied) do
    for name in string.gmatch(what, '%S+') do count(name, by) end
  end
  for status, by in pairs(finished) do redis.pcall('HINCRBY', minute, status, by) end  -- `meta` has their totals
end

-- Begins the longer steps that have not begun yet, at the first settle of a minute: copies the numbers of all time, before
-- note_history adds to them. `adding` are the finished tasks that this call has added to `meta` already.
local function begin_steps(prefix, totals, meta, now, adding)
  -- A day and an hour, and eight days.
  local kept_s = {
    [prefix .. 'h10:' .. math.floor(now / 600000)] = 90000,
    [prefix .. 'h60:' .. math.floor(now / 3600000)] = 691200,
  }
  local copy
  for key, seconds in pairs(kept_s) do
    if redis.pcall('EXISTS', key) == 0 then
      copy = copy or redis.pcall('HGETALL', totals)
      if copy.err then return end
      for _, status in ipairs({ 'completed', 'failed', 'cancelled' }) do
        local count = tonumber(redis.pcall('HGET', meta, status) or 0) or 0
        redis.pcall('HSET', key, status, count - (adding[status] or 0))
      end
      if #copy > 0 then redis.pcall('HSET', key, unpack(copy)) end
      redis.pcall('EXPIRE', key, seconds)
    end
  end
end
