-- Deadlines of tasks. The overrides of a task that has one begin with '{"@by":[start_ms,complete_ms,start,complete,ttl_s]':
-- until when an attempt must start and all attempts must end, the lengths of both in ms (0: none), and for how long the
-- cancelled task is kept. A task without deadlines costs none of these functions. See store/time_limits.py.

local LIMITS = '^{"@by":%[(%d+),(%d+),(%d+),(%d+),(%d+)%]'

-- Until when a pending task must start, in ms, and the seconds for which it is kept then; nil without a deadline.
local function expiry_of(overrides)
  if not overrides then return nil end
  local start, complete, _, _, ttl_s = string.match(overrides, LIMITS)
  if not start then return nil end
  start, complete = tonumber(start), tonumber(complete)
  if start == 0 or complete > 0 and complete < start then start = complete end
  return start, tonumber(ttl_s)
end

local function is_over(overrides, at)
  local expiry = expiry_of(overrides)
  return expiry and expiry <= at
end

-- The overrides with deadlines of the same lengths from `base` on.
local function with_deadlines_from(base, overrides)
  local _, last, _, _, start, complete, ttl_s = string.find(overrides, LIMITS)
  if not last then return overrides end
  local start_ms = start == '0' and '0' or whole(base + start)
  local complete_ms = complete == '0' and '0' or whole(base + complete)
  local limits = table.concat({ start_ms, complete_ms, start, complete, ttl_s }, ',')
  return '{"@by":[' .. limits .. ']' .. string.sub(overrides, last + 1)
end

-- Ends the task of an accepted settle whose comeback would be too late, or which ends an overdue task. The item then has
-- the moment of its end as `ended`.
local function keep_deadline(item, kind, overrides, now)
  item.kind, item.overrides = kind, overrides
  if not item.accepted then return end
  if kind == 'overdue' then
    local expiry, ttl_s = expiry_of(overrides)
    item.ended, item.ttl, item.expiry = whole(expiry), ttl_s, whole(now + ttl_s * 1000)
  elseif item.status == 'pending' and (kind == 'lease' or kind == 'expired') and is_over(overrides, now + item.delay) then
    item.answer, item.status, item.ended = 'cancelled', 'cancelled', whole(now)
  end
end
