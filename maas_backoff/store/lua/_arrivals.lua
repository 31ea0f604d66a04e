-- Arrivals of tasks that a batch waits for: "~tasks costs until" in the hash `kinds`, as _batch.lua has noted it.

-- Counts a new task of a kind that is due. `line` is the beginning of its creation.
local function note_arrival(batch, line)
  batch.count = batch.count + 1
  if batch.has_costs == nil then batch.has_costs = not string.find(batch.waits, ' - ', 1, true) end
  if batch.has_costs then
    batch.cost = batch.cost + first_cost_of(line)
  end
end

-- Whether a worker should look for the batch now. Else notes how much is still missing. For the writing part of a script.
local function has_enough(prefix, kind, batch, now)
  local tasks, costs, until_ms = string.match(batch.waits, '^~(%S+) (%S+) (%S+)$')
  local left, rest = (tonumber(tasks) or 0) - batch.count, (tonumber(costs) or math.huge) - batch.cost
  local is_due = left <= 0 or rest <= 0 or now >= (tonumber(until_ms) or 0)
  if not is_due and batch.count == 0 then return false end
  local waits = is_due and '' or '~' .. left .. ' ' .. (batch.has_costs and string.format('%.12g', rest) or '-') .. ' ' .. until_ms
  redis.call('HSET', prefix .. 'kinds', kind, waits)
  return is_due
end
