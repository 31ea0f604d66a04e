--[[ Set or remove a limit, or the limits of all names of a class.
KEYS: meta call
ARGV: now prefix name setting call_ms
Returns: 1 changed, 0 it was so before
`setting` is as _limits.lua reads it; '' removes the limit. A limit that a task has closed opens.
An operation, with a `call` of its own: a repeated call gets the same answer for call_ms, and undoes no later change.
]]
--#include _clock
--#include _time
--#include _time_of
--#include _call
--#include _queue
local meta, call, prefix, name, setting = KEYS[1], KEYS[2], ARGV[2], ARGV[3], ARGV[4]
local stored_answer = answered_before(call)
if stored_answer then return tonumber(stored_answer) end
local now, settings, opens = queue_time_of(ARGV[1], meta), prefix .. 'limits', prefix .. 'opens'
local changed = (redis.call('HGET', settings, name) or '') ~= setting and 1 or 0

-- Read: the limits of that name, or of that class, with lanes that wait for them. The next claim looks at them again.
local due, class = {}, string.match(name, '^(.*):%*$')
for _, waiting in ipairs(redis.call('ZRANGE', opens, 0, -1)) do
  if waiting == name or class and string.sub(waiting, 1, #class + 1) == class .. ':' then
    due[#due + 1] = whole(now)
    due[#due + 1] = waiting
  end
end
local bases, wake = bases_of_all(prefix), {}
redis.call('HDEL', meta, '')
redis.call('ZADD', prefix .. 'never', 'XX', 0, '')
redis.call('EXPIRE', prefix .. 'never', 1)
keep_answer(call, changed, math.ceil(ARGV[5] / 1000))
if setting == '' then
  redis.call('HDEL', settings, name)
else
  redis.call('HSET', settings, name, setting)
  redis.call('HSET', meta, 'lanes', 2)
end
redis.call('HDEL', prefix .. 'closed', name)
for i = 1, #due, 1000 do redis.call('ZADD', opens, unpack(due, i, math.min(i + 999, #due))) end
for _, base in ipairs(#due > 0 and bases or {}) do wake[base] = true end
wake_bases(wake, wake)
return changed
