-- The suspects that a worker may claim: tasks that were lost with their worker again, or whose batch failed. See
-- domain/suspicion.py.

local NO_SUSPECTS = '0 -'
-- How many suspects that may not be claimed are passed over in a GPU's set, to find the tasks behind them.
local STEP, MOST_PASSED = 100, 1000

-- The rule of an argument "may cohort". If `may` is 1, the worker may claim suspects of the one `cohort`, or of any one
-- if `cohort` is '-'. The functions are made here because each costs a script time, and most claims meet no suspect.
-- `suspicion` is a task's field c.
local function suspicion_of(text)
  local may, cohort = string.match(text, '^(%d) (.+)$')
  local rule = { may = may == '1', cohort = cohort ~= '-' and cohort or nil }

  -- The name of a suspect's cohort, and how many tasks it had. A task that an older release lost comes back alone.
  function rule.cohort_of(id, suspicion)
    local name, size = string.match(suspicion or '', '^%S+ (%S+) (%d+)$')
    return name or '!' .. id, tonumber(size or 1)
  end

  -- Whether a task may be claimed. After a suspect was `noted`, no suspect of another cohort may be claimed.
  function rule.may_claim(id, counts, suspicion)
    if not is_suspect(counts) then return true end
    return rule.may and (not rule.cohort or rule.cohort == rule.cohort_of(id, suspicion))
  end

  function rule.note(id, counts, suspicion)
    if is_suspect(counts) then rule.cohort = rule.cohort_of(id, suspicion) end
  end

  return rule
end
