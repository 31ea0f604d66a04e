--[[ Pause or resume all claims of a queue, or those of one kind of tasks.
KEYS: meta call
ARGV: now prefix on kind call_ms by
Returns: 1 changed, 0 it was so before, -1 the queue has 200 other kinds
An empty `kind` is the whole queue. A kind that never had a task may be paused before its first one.
`by` is who pauses, or ''. It is kept with the time of the pause: an older release ends a pause and leaves the name.
A second pause changes nothing: the first one keeps its time and its name.
An operation, with a `call` of its own: a repeated call gets the same answer for call_ms, and undoes no later change.
The first write is an HDEL: a server whose memory is full does not refuse to pause.
]]
--#include _clock
--#include _time
--#include _time_of
--#include _call
--#include _queue
local meta, call, prefix, on, kind = KEYS[1], KEYS[2], ARGV[2], ARGV[3] == '1', ARGV[4]
local stored_answer = answered_before(call)
if stored_answer then return tonumber(stored_answer) end
local stamp, kinds, bases, changed = whole(queue_time_of(ARGV[1], meta)), prefix .. 'kinds', nil, 0
local by, names, name = ARGV[6], prefix .. 'paused_by', kind == '' and 'queue' or 'kind ' .. kind
redis.call('HLEN', names)  -- a key of another type ends the script here
if kind == '' then
  bases = bases_of_all(prefix)
  if (redis.call('HEXISTS', meta, 'paused') == 1) ~= on then changed = 1 end
else
  bases = { base_of(prefix, kind) }
  local since = redis.call('HGET', kinds, kind)
  if is_open(since) == on then changed = 1 end
  if changed == 1 and not since and redis.call('HLEN', kinds) >= MOST_KINDS then changed = -1 end
end
redis.call('HDEL', meta, '')
redis.call('EXPIRE', prefix .. 'never', 1)
keep_answer(call, changed, math.ceil(ARGV[5] / 1000))
if kind ~= '' then
  if changed == 1 then redis.call('HSET', kinds, kind, on and stamp or '') end
elseif on then
  if changed == 1 then redis.call('HSET', meta, 'paused', stamp) end
else
  redis.call('HDEL', meta, 'paused')
end
if changed == 1 and on and by ~= '' then redis.call('HSET', names, name, stamp .. ' ' .. by) end
if not on then
  redis.call('HDEL', names, name)
  -- One sleeping worker of each kind wakes, and wakes the next while there is work.
  local wake = {}
  for _, base in ipairs(bases) do wake[base] = true end
  wake_bases(wake, wake)
end
return changed
