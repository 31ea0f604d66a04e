-- Which suspects a worker may claim: tasks whose last attempt was lost with its worker. See domain/suspicion.py.

local NO_SUSPECTS = '0 0'
-- How many suspects that may not be claimed are passed over in a GPU's set, to find the tasks behind them.
local STEP, MOST_PASSED = 100, 1000

-- The rule of an argument "may in_children cohort". If `may` is 1, the worker may claim suspects of the one `cohort`, or
-- of any one if `cohort` is '-'. If `in_children` is 1, tasks that were lost once need no cohort. The functions are made
-- here because each costs a script time, and most claims meet no suspect. `told` is a task's field c.
local function suspicion_of(text)
  local may, in_children, cohort = string.match(text, '^(%d) (%d) (.+)$')
  local rule = { may = may == '1', cohort = cohort ~= '-' and cohort or nil }

  -- The name of a suspect's cohort, and how many tasks it had. A task that an older release lost comes back alone.
  function rule.cohort_of(id, told)
    local name, size = string.match(told or '', '^%S+ (%S+) (%d+)$')
    return name or '!' .. id, tonumber(size or 1)
  end

  function rule.needs_cohort(counts)
    return is_suspect(counts) and not (in_children == '1' and string.match(counts, '^%d+ (%d+)') == '1')
  end

  -- Whether a task may be claimed. After a suspect was `noted`, no suspect of another cohort may be claimed.
  function rule.may_claim(id, counts, told)
    if not rule.needs_cohort(counts) then return true end
    return rule.may and (not rule.cohort or rule.cohort == rule.cohort_of(id, told))
  end

  function rule.note(id, counts, told)
    if rule.needs_cohort(counts) then rule.cohort = rule.cohort_of(id, told) end
  end

  return rule
end
