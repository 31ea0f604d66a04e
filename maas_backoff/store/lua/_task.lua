-- Reads of a task's hash, before the first write of a script.

-- A key of another type has no task: nil. Any other error ends the script, with nothing written. A Cluster moves the
-- queue key by key: a task that is being moved must not count as deleted.
local function fields_of(key, ...)
  local task = redis.pcall('HMGET', key, ...)
  if not task.err then return task end
  if string.find(task.err, 'WRONGTYPE', 1, true) then return nil end
  error(task.err, 0)
end

-- The counts are: retries losses snoozes suspect (0 or 1). A task that has not come back has none.
local function is_suspect(counts) return counts and string.sub(counts, -1) == '1' end
