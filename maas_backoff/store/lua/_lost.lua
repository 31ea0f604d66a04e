-- How many tasks a dead worker ran. Its leases run out at different times and are listed in steps, but it died once.

local MOST_BESIDE = 1000

-- Whether a task ran in a cohort of lost tasks, by its fields k and c. The halves of failed batches have ended no worker.
local function is_of_cohort(counts, suspicion)
  return is_suspect(counts) and not string.find(suspicion or '', ' ~', 1, true)
end

-- Reads the numbers of each worker of these rows: worker fresh fresh_left suspects suspects_left again. The `_left` numbers
-- count tasks that have not come back; `suspects` are those of cohorts of lost tasks, and `again` counts the others that
-- were lost before. The leases of a dead worker run out until `until_ms`.
local function count_lost(rows, prefix, leases, until_ms)
  local left, numbers = {}, {}
  local function note(holder, counts, suspicion, is_new)
    local worker = string.match(holder or '', '^%S+ ([^\n]+)')
    if not worker then return end  -- the task's hash is gone, or of another type
    if is_new and not left[worker] then left[worker] = { fresh = 0, suspects = 0, again = 0 } end
    local kind = is_of_cohort(counts, suspicion) and 'suspects' or 'fresh'
    local count = left[worker]
    if not count then return end
    count[kind] = count[kind] + 1
    if kind == 'fresh' and counts and not string.find(counts, '^%S+ 0 ') then count.again = count.again + 1 end
  end
  for _, row in ipairs(rows) do note(row[7], row[6], row[8], true) end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', until_ms, 'LIMIT', #rows, MOST_BESIDE)) do
    local task = fields_of(prefix .. 't:' .. id, 'y', 'k', 'c')
    if task then note(task[1], task[2], task[3], false) end
  end
  for worker, count in pairs(left) do
    local before = redis.call('HMGET', prefix .. 'lost:' .. worker, 'fresh', 'suspects', 'again')
    local fresh = math.max(count.fresh, tonumber(before[1] or 0))
    local suspects = math.max(count.suspects, tonumber(before[2] or 0))
    local again = math.max(count.again, tonumber(before[3] or 0))
    numbers[#numbers + 1] = { worker, fresh, count.fresh, suspects, count.suspects, again }
  end
  return numbers
end

-- Keeps the numbers for the next steps. For the writing part of a script, which has called EXPIRE before.
local function note_lost(numbers, prefix, keep_ms)
  for _, one in ipairs(numbers) do
    local key = prefix .. 'lost:' .. one[1]
    redis.call('HSET', key, 'fresh', one[2], 'suspects', one[4], 'again', one[6])
    redis.call('EXPIRE', key, math.ceil(keep_ms / 1000))
  end
end
