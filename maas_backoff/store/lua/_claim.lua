-- Claiming: due tasks become leased ones.

-- What a worker needs of a task, in the order in which it is read.
local CREATION, ATTEMPT, OVERRIDES, COUNTS, DUE = 1, 2, 3, 4, 5

local function read_task(key)
  local task = fields_of(key, 'p', 'n', 'o', 'k', 'u')
  -- A task whose hash is gone or of the wrong type cannot run; it must not stop the others.
  if not task or not task[CREATION] then return nil end
  return task
end

-- The claims of an earlier, identical request that are still held: the reply to it was lost. `fits`: as they were given.
local function replay(ids, first_token, fits, tasks)
  local held, token = {}, tonumber(first_token)
  local next_fit = string.gmatch(fits or '', '%d+')
  for id in string.gmatch(ids, '[^\n]+') do
    local fit = tonumber(next_fit() or '')
    local key = tasks .. id
    local now = fields_of(key, 's', 't')
    if now and now[1] == 'processing' and tonumber(now[2]) == token then
      local task = read_task(key)
      if task then held[#held + 1] = { id = id, task = task, token = token, attempt = tonumber(task[ATTEMPT]), fit = fit } end
    end
    token = token + 1
  end
  return held
end

-- Which of the places has enough memory for a task of a set that several demands share.
local function place_for(task, key, places)
  local memory = tonumber(string.match(demand_of(redis.call('HGET', key, 'q'), task[CREATION]), '^[^:]+'))
  for n, place in ipairs(places) do
    if place.memory >= memory then return n end
  end
  return nil
end

-- Claims of tasks that wait for a GPU: as many of each demand as there are fits, the oldest first.
local function claims_on_fits(fits, prefix, tasks, may_claim_suspect, orphans)
  local claims, names, by_demand = {}, {}, {}
  local number = 0
  for demand, device in string.gmatch(fits, '(%S+) ([^\n]+)') do
    if not by_demand[demand] then names[#names + 1] = demand end
    append(by_demand, demand, { number = number, device = device, memory = tonumber(string.match(device, '%S+$')) })
    number = number + 1
  end
  for _, demand in ipairs(names) do
    local from, places = gpu_set(prefix, demand), by_demand[demand]
    -- A few more: those that may not run now are passed over.
    for _, id in ipairs(redis.call('ZRANGE', from, 0, #places + 64)) do
      if #places == 0 then break end
      local task = read_task(tasks .. id)
      local suspect = task and is_suspect(task[COUNTS])
      local fitting = task and (not is_shared(demand) or place_for(task, tasks .. id, places))
      if not task then
        append(orphans, from, id)
      elseif fitting and (may_claim_suspect or not suspect) then
        may_claim_suspect = may_claim_suspect and not suspect
        local place = table.remove(places, fitting == true and 1 or fitting)
        claims[#claims + 1] = {
          id = id, from = from, task = task, token = 0, attempt = (task[ATTEMPT] or 0) + 1,
          fit = place.number, device = place.device,
        }
      end
    end
  end
  return claims
end
