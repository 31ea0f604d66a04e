-- Claims that meet tasks whose deadline has passed: the claim ends them instead. A claim looks if `claimed_at` is set.

-- It ends 200 at most: each costs about 20 us. Further late tasks are left to the next claim and to the reaper.
local MOST_OVERDUE = 200
local claimed_at, overdue = nil, {}

local function is_overdue(overrides) return claimed_at and is_over(overrides, claimed_at) end

-- Whether the claim ends the task.
local function note_overdue(key)
  if #overdue == MOST_OVERDUE then return false end
  overdue[#overdue + 1] = key
  return true
end

-- Collects the removal of a claimed task from the index of deadlines. The index is read: one of another type ends the
-- script here, before its first write.
local function unlist_deadline(id, overrides, from, deadlines)
  if not expiry_of(overrides) then return end
  if not from[deadlines] then redis.call('ZCARD', deadlines) end
  append(from, deadlines, id)
end

-- Adds to the settles of a request one for each task that its claim met too late.
local function add_overdue(items, tasks, now)
  for _, key in ipairs(overdue) do
    local task = redis.call('HMGET', key, 't', 'o', 's', 'p', 'b')
    local expiry, ttl_s = expiry_of(task[2])
    -- A task in another state has a stale entry, which is dropped.
    if (task[3] or 'pending') == 'pending' then
      items[#items + 1] = {
        id = string.sub(key, #tasks + 1), key = key, given = task[1] or '0', answer = 'ok', accepted = true,
        status = 'cancelled', ttl = ttl_s, expiry = whole(now + ttl_s * 1000), tally = '', was = 'pending',
        created = task[4], is_dropped = true, ended = whole(expiry), first = 1, last = 0, emitted = task[5],
      }
    end
  end
end
