-- Suspects: tasks whose last attempt was lost with its worker. Which of them may a worker claim? See domain/suspicion.py.
-- The argument `suspicion` is "may in_children cohort": `may` is 1 if the worker may claim suspects of one cohort, which is
-- `cohort`, or any one if that is '-'. With `in_children` of 1, tasks that were lost once need no cohort.

-- How many suspects that may not be claimed are passed over in a GPU's set, to find what is behind them.
local STEP, MOST_PASSED = 100, 1000

local NO_SUSPECTS = '0 0'

local function suspicion_of(text)
  local may, in_children, cohort = string.match(text, '^(%d) (%d) (%S+)$')
  return { may = may == '1', in_children = in_children == '1', cohort = cohort ~= '-' and cohort or nil }
end

-- The name of a suspect's cohort, and how many tasks it had; `told` is its field c. A task that an older release has lost
-- comes back alone.
local function cohort_of(id, told)
  local cohort, size = string.match(told or '', '^%S+ (%S+) (%d+)$')
  return cohort or '!' .. id, tonumber(size or 1)
end

local function needs_cohort(rule, counts)
  return is_suspect(counts) and not (rule.in_children and string.match(counts, '^%d+ (%d+)') == '1')
end

-- Whether a task may be claimed. After one was `noted`, no suspect of another cohort may be.
local function may_claim(rule, id, counts, told)
  return not needs_cohort(rule, counts) or rule.may and (not rule.cohort or rule.cohort == cohort_of(id, told))
end

local function note_claimed(rule, id, counts, told)
  if needs_cohort(rule, counts) then rule.cohort = cohort_of(id, told) end
end
