--[[ Note that a task failed as on a broken device, or that the device itself says it is broken; or that a task succeeded.
KEYS: ledger
ARGV: now task limit shut_ms reason
Returns: 1 if the device is in quarantine now
No `reason`: it works. No `task`: the device says so itself. Only different tasks make `limit`: one may be at fault itself.
]]
--#include _clock
--#include _ledger
local ledger = KEYS[1]
local now, ahead = ledger_time(ARGV[1], redis.call('HGET', ledger, 'clock'))
local task, limit, shut_ms, reason = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local before = redis.call('HGET', ledger, 'shut')
local until_before = before and until_of(before) or 0
if reason == '' then
  -- A task that had begun before the device was shut proves nothing.
  if until_before <= now then redis.call('HDEL', ledger, 'shut', 'faults', 'trial') end
  return 0
end
local faults = redis.call('HGET', ledger, 'faults') or ''
local again = before ~= false
begin_writing(ledger, now, ahead)
local count = 0
if task ~= '' then
  local seen = false
  for line in string.gmatch(faults, '[^\n]+') do
    count = count + 1
    seen = seen or line == task
  end
  if not seen then
    faults = faults .. task .. '\n'
    count = count + 1
  end
  redis.call('HSET', ledger, 'faults', faults)
end
local shut = again or task == '' or count >= limit
if shut then redis.call('HSET', ledger, 'shut', whole(math.max(now + shut_ms, until_before)) .. ' ' .. reason) end
return shut and 1 or 0
