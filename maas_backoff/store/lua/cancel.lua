--[[ Ask the worker that runs a task to stop it. Changes no state: the attempt's own settlement does.
KEYS: task
ARGV: prefix id keep_ms
Returns: the task's state, or nil
]]
if redis.call('HEXISTS', KEYS[1], 'p') == 0 then return false end
local task = redis.call('HMGET', KEYS[1], 's', 'y')
if task[1] == 'processing' then
  local control = ARGV[1] .. 'ctl:' .. string.match(task[2], '^%S+ ([^\n]*)')
  redis.call('ZREM', control, ARGV[2])  -- a first write that a full memory does not refuse
  redis.call('HSET', KEYS[1], 'x', '1')
  redis.call('ZADD', control, 0, ARGV[2])
  redis.call('PEXPIRE', control, ARGV[3])
end
return task[1] or 'pending'
