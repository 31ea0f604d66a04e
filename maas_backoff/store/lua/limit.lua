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

-- Read: what has started lately counts as if it had started under the new setting. Another rate waits no longer, and gives
-- no more starts than its own.
local arrivals, moments, gone = prefix .. 'arrivals', {}, {}
local function intervals_of(text)
  local _, interval, _, unit = string.match(text or '', '^(%S+) (%S+) (%S+) (%S+)')
  return { r = tonumber(interval or 0) or 0, u = tonumber(unit or 0) or 0 }
end
local of_class = not class and redis.call('HGET', settings, (string.gsub(name, ':.*$', ':*')))
local before = intervals_of(redis.call('HGET', settings, name) or of_class)
local after = intervals_of(setting ~= '' and setting or of_class)

local function note_arrival(member, score)
  local what, old = string.sub(member, 1, 1), tonumber(score) - now
  if old <= 0 or before[what] == after[what] then return end
  if before[what] == 0 or after[what] == 0 then
    gone[#gone + 1] = member
  else
    moments[#moments + 1], moments[#moments + 2] = now + old * after[what] / before[what], member
  end
end
if class then
  local all = redis.call('ZRANGE', arrivals, 0, -1, 'WITHSCORES')
  for n = 1, #all, 2 do
    local limit = string.sub(all[n], 3)
    local is_ours = string.sub(limit, 1, #class + 1) == class .. ':'
    if is_ours and redis.call('HEXISTS', settings, limit) == 0 then note_arrival(all[n], all[n + 1]) end
  end
else
  for _, what in ipairs({ 'r ', 'u ' }) do note_arrival(what .. name, redis.call('ZSCORE', arrivals, what .. name) or 0) end
end

local bases, wake = bases_of_all(prefix), {}
redis.call('HDEL', meta, '')
redis.call('ZREM', prefix .. 'never', '')
redis.call('ZADD', prefix .. 'never', 'XX', 0, '')
redis.call('EXPIRE', prefix .. 'never', 1)
keep_answer(call, changed, math.ceil(ARGV[5] / 1000))
if setting == '' then
  redis.call('HDEL', settings, name)
else
  redis.call('HSET', settings, name, setting)
  redis.call('HSET', meta, 'lanes', 2)
end
if changed == 1 or setting == '' then redis.call('HDEL', prefix .. 'closed', name) end
for i = 1, #moments, 1000 do redis.call('ZADD', arrivals, unpack(moments, i, math.min(i + 999, #moments))) end
for i = 1, #gone, 1000 do redis.call('ZREM', arrivals, unpack(gone, i, math.min(i + 999, #gone))) end
for i = 1, #due, 1000 do redis.call('ZADD', opens, unpack(due, i, math.min(i + 999, #due))) end
for _, base in ipairs(#due > 0 and bases or {}) do wake[base] = true end
wake_bases(wake, wake)
return changed
