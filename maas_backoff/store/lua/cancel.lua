--[[ Ask the worker that runs a task to stop it. The attempt's own settlement changes the state.
KEYS: task call meta
ARGV: prefix id keep_ms call_ms token
Returns: the task's state, or nil; 'lost' if it runs under another token
An empty token means any.
An operation, with a `call` of its own: a repeated call gets the same answer for call_ms.
]]
--#include _call
local stored_answer = answered_before(KEYS[2])
if stored_answer then return stored_answer ~= '' and stored_answer end
local task = redis.call('HMGET', KEYS[1], 'p', 's', 'y', 't')
local state = task[1] and (task[2] or 'pending')
if state == 'processing' and ARGV[5] ~= '' and ARGV[5] ~= task[4] then state = 'lost' end
local control = state == 'processing' and ARGV[1] .. 'ctl:' .. string.match(task[3], '^%S+ ([^\n]*)')
-- Each command is tried before the first real write. A server whose memory is full does not refuse the first command.
redis.call('HDEL', KEYS[3], '')
redis.call('EXPIRE', ARGV[1] .. 'never', 1)
if control then redis.call('ZADD', control, 'XX', 0, '') end
keep_answer(KEYS[2], state or '', math.ceil(ARGV[4] / 1000))
if control then
  redis.call('HSET', KEYS[1], 'x', '1')
  redis.call('ZADD', control, 0, ARGV[2])
  redis.call('EXPIRE', control, math.ceil(ARGV[3] / 1000))
end
return state
