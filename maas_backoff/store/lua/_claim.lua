-- Claiming: due tasks become leased ones.

-- What a worker needs of a task, in the order in which it is read.
local CREATION, ATTEMPT, OVERRIDES, COUNTS = 1, 2, 3, 4

local function read_task(key)
  local task = fields_of(key, 'p', 'n', 'o', 'k')
  -- A task whose hash is gone or of the wrong type cannot run; it must not stop the others.
  if not task or not task[CREATION] then return nil end
  return task
end

-- The claims of an earlier, identical request that are still held: the reply to it was lost.
local function replay(ids, first_token, tasks)
  local held, token = {}, tonumber(first_token)
  for id in string.gmatch(ids, '[^\n]+') do
    local key = tasks .. id
    local now = fields_of(key, 's', 't')
    if now and now[1] == 'processing' and tonumber(now[2]) == token then
      local task = read_task(key)
      if task then held[#held + 1] = { id = id, task = task, token = token, attempt = tonumber(task[ATTEMPT]) } end
    end
    token = token + 1
  end
  return held
end
