--[[ Read tasks; note for how long a client watches them.
KEYS: watched meta
ARGV: now prefix watch_ms limit | ids
Returns: now, whether the queue is paused (1 or 0), for each task: how many ready tasks of its kind come before it or -1, its fields; names and times of the paused kinds, if one of the tasks waits and has a kind; the paused ones among the tenants of waiting tasks; rows of their limits
The reply ends with the task that fills it to `limit` bytes of values. The caller asks again for the others.
For a task in a lane, the number before its fields is a text: see _shares.lua, `place_of`.
]]
--#include _clock
--#include _time
--#include _time_of
--#include _queue
--#include _paused
--#include _lanes
--#include _shares
--#include _watch
local watched, prefix, watch_ms, room = KEYS[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local state = redis.call('HMGET', KEYS[2], 'ahead', 'reaped_at', 'paused')
local now = queue_time(clock(ARGV[1]), state[1], state[2])
local rows, found, has_kind, shares = {}, {}, false, nil
for i = 5, #ARGV do
  local id, pending, created = ARGV[i], true, nil
  local task = redis.call('HGETALL', prefix .. 't:' .. id)
  for n = 1, #task, 2 do
    if task[n] == 's' then pending = task[n + 1] == 'pending' end
    if task[n] == 'p' then created = task[n + 1] end
    room = room - #task[n + 1]
  end
  local ahead = false
  if pending and created then
    local _, _, kind, lane = terms_of(created)
    has_kind = has_kind or kind ~= ''
    local ready = base_of(prefix, kind) .. 'ready'
    if lane == '' then
      ahead = redis.call('ZRANK', ready, id)
    else
      shares = shares or new_shares(prefix)
      shares.add(lane)
      ahead = shares.place_of(ready, lane, id)
    end
  end
  rows[2 * i - 9], rows[2 * i - 8] = ahead or -1, task
  if watch_ms > 0 and #task > 0 then found[#found + 1] = id end
  if room <= 0 then break end
end
local paused, paused_tenants, limits = has_kind and paused_kinds(prefix) or {}, {}, {}
if shares then paused_tenants, limits = shares.read() end
if #found > 0 then watch(watched, found, now, watch_ms) end
return { reply_time(now, state[1]), state[3] and 1 or 0, rows, paused, paused_tenants, limits }
