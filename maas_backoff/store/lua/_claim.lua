-- Claiming: due tasks become leased ones.

-- What a worker needs of a task: params, record, overrides, counters, due, whether it is a suspect.
local CLAIM_FIELDS = { 'c', 's', 't', 'n', 'p', 'o', 'k', 'l', 'z', 'u', 'q' }

local function read_task(prefix, id)
  local task = fields_of(prefix .. 't:' .. id, unpack(CLAIM_FIELDS))
  -- A task whose hash is gone or of the wrong type cannot run; it must not stop the others.
  if not task or not task[1] or not task[5] then return nil end
  return task
end

-- The claims of an earlier, identical request that are still held: the reply to it was lost.
local function replay(record, prefix)
  local held = {}
  for id, token in string.gmatch(record, '([^\n]+)\n(%d+)\n') do
    local task = read_task(prefix, id)
    if task and task[2] == 'processing' and task[3] == token then
      held[#held + 1] = { id = id, task = task, token = token, attempt = task[4] }
    end
  end
  return held
end
