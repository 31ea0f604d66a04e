--[[ Pause or resume all claims of a queue.
KEYS: meta call
ARGV: now prefix on call_ms
Returns: 1 changed, 0 it was so before
An operation, with a `call` of its own: a repeated call gets the same answer for call_ms, and undoes no later change.
The first write is an HDEL: a server whose memory is full does not refuse to pause.
]]
--#include _clock
--#include _time
--#include _time_of
--#include _call
--#include _queue
local meta, call, on = KEYS[1], KEYS[2], ARGV[3] == '1'
local stored_answer = answered_before(call)
if stored_answer then return tonumber(stored_answer) end
local stamp, was = whole(queue_time_of(ARGV[1], meta)), redis.call('HEXISTS', meta, 'paused') == 1
local changed = was == on and 0 or 1
local bases = bases_of_all(ARGV[2])
redis.call('HDEL', meta, '')
redis.call('EXPIRE', ARGV[2] .. 'never', 1)
keep_answer(call, changed, math.ceil(ARGV[4] / 1000))
if on then
  redis.call('HSET', meta, 'paused', stamp)
else
  redis.call('HDEL', meta, 'paused')
  -- One sleeping worker of each kind wakes, and wakes the next while there is work.
  local wake = {}
  for _, base in ipairs(bases) do wake[base] = true end
  wake_bases(wake, wake)
end
return changed
