--[[ Note a GPU fault of a task, or of the device itself; or note that a task succeeded.
KEYS: ledger
ARGV: now task limit shut_ms reason queue
Returns: 1 if the device is in quarantine now
No `reason`: a success. No `task`: a fault of the device, for all queues. A fault of a task counts for its own `queue`: a bug of one queue takes no device from the others. Only faults of different tasks add up to `limit`: one task may cause all of its own.
]]
--#include _clock
--#include _ledger
local ledger = KEYS[1]
local now, ahead = ledger_time(ARGV[1], redis.call('HGET', ledger, 'clock'))
local task, limit, shut_ms, reason, queue = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6]
local of_queue = queue == '' and '' or ':' .. queue

local function shut_until(of)
  local shut = redis.call('HGET', ledger, 'shut' .. of)
  return shut and until_of(shut)
end

if reason == '' then
  -- The success of a task that began before the quarantine proves nothing.
  for _, of in ipairs({ '', of_queue }) do
    if (shut_until(of) or 0) <= now then redis.call('HDEL', ledger, 'shut' .. of, 'faults' .. of, 'trial' .. of) end
  end
  return 0
end
local of = task == '' and '' or of_queue
local faults = redis.call('HGET', ledger, 'faults' .. of) or ''
local before = shut_until(of)
begin_writing(ledger, now, ahead)
local tasks = {}
if task ~= '' then
  for line in string.gmatch(faults, '[^\n]+') do
    if line ~= task then tasks[#tasks + 1] = line end
  end
  tasks[#tasks + 1] = task
  while #tasks > limit do table.remove(tasks, 1) end
  redis.call('HSET', ledger, 'faults' .. of, table.concat(tasks, '\n') .. '\n')
end
local shut = before or task == '' or #tasks >= limit
if shut then redis.call('HSET', ledger, 'shut' .. of, whole(math.max(now + shut_ms, before or 0)) .. ' ' .. reason) end
if shut and shut_ms > KEPT_S * 1000 then redis.call('EXPIRE', ledger, KEPT_S + math.ceil(shut_ms / 1000)) end
return shut and 1 or 0
