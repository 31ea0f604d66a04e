--[[ List leases that ran out, drop the index entries of finished tasks that are gone, and measure the pace.
KEYS: leases completed failed cancelled meta
ARGV: now prefix gap_ms grace_ms limit
Returns: now, per lease: id token creation overrides attempt counts held_by suspicion, per worker of the leases, the numbers of _lost.lua, ms until the next look is worth it or -1, and the ids of pending tasks whose deadline has passed
If the server's clock was set back, the difference is noted in meta: see _time.lua.
A gap is a time of gap_ms without a call: the server, or all workers, stood still. Live workers then get grace_ms to renew, and no lease is listed, except those of workers whose process has ended: see expire.lua.
Changes no task: the leases that ran out are settled by settle.lua.
]]
--#include _clock
--#include _time
--#include _task
--#include _schema
--#include _lost
local leases, meta = KEYS[1], KEYS[5]
local prefix, gap_ms, grace_ms, limit = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local seen = redis.call('HMGET', meta, 'reaped_at', 'grace_until', 'ahead', 'schema')
local last, grace_until, ahead = tonumber(seen[1] or 0) or 0, tonumber(seen[2] or 0) or 0, tonumber(seen[3] or 0) or 0
-- A server whose clock is this far behind was set back. For less, the queue's clock stands still that long.
local time = clock(ARGV[1])
local back = last - ahead - time
if back > 1000 then ahead = math.floor(ahead + back) end
local now = queue_time(time, ahead, last)
if now - last > gap_ms or back > 1000 then grace_until = now + grace_ms end

-- How many tasks are finished per ms: over the last 30 seconds or more, since the last measurement.
local pace = redis.call('HMGET', meta, 'paced_at', 'paced_total', 'completed', 'failed', 'cancelled')
local paced_at = tonumber(pace[1] or 0)
local total = tonumber(pace[3] or 0) + tonumber(pace[4] or 0) + tonumber(pace[5] or 0)

local rows, ended = {}, now >= grace_until and now or 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', ended, 'LIMIT', 0, limit)) do
  local task = fields_of(prefix .. 't:' .. id, 't', 'p', 'o', 'n', 'k', 'y', 'c') or { false, false }
  task[2] = task[2] and string.match(task[2], '^[^\n]*\n?')  -- without the params
  table.insert(task, 1, id)
  rows[#rows + 1] = task
end
-- The next lease that ends, unless its worker renews it.
local next_end = tonumber(redis.call('ZRANGEBYSCORE', leases, '(' .. whole(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2] or -1)
if ended == 0 then next_end = grace_until end
-- Half a lease ahead: the last leases of a dead worker run out up to a third of a lease after its first, and leases of a
-- live worker later.
local numbers = #rows > 0 and count_lost(rows, prefix, leases, now + gap_ms) or {}

local deadlines = prefix .. 'deadlines'
local overdue = redis.call('ZRANGEBYSCORE', deadlines, '-inf', now, 'LIMIT', 0, limit)
local next_deadline = redis.call('ZRANGEBYSCORE', deadlines, '(' .. whole(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
if next_deadline and (next_end < 0 or tonumber(next_deadline) < next_end) then next_end = tonumber(next_deadline) end

local gone = {}
for k = 2, 4 do gone[k] = redis.call('ZRANGEBYSCORE', KEYS[k], '-inf', now, 'LIMIT', 0, 500) end

redis.call('ZREM', leases, '')
if #numbers > 0 then redis.call('EXPIRE', prefix .. 'never', 1) end
note_lost(numbers, prefix, 4 * gap_ms)
if not seen[4] then redis.call('HSET', meta, 'schema', SCHEMA) end
redis.call('HSET', meta, 'reaped_at', whole(now), 'grace_until', whole(grace_until))
if back > 1000 then redis.call('HSET', meta, 'ahead', whole(ahead)) end
if now - paced_at >= 30000 then
  local per_ms = (total - tonumber(pace[2] or 0)) / (now - paced_at)
  redis.call('HSET', meta, 'pace', string.format('%.9f', paced_at > 0 and per_ms or 0), 'paced_at', whole(now), 'paced_total', whole(total))
end
for k = 2, 4 do
  if #gone[k] > 0 then redis.call('ZREM', KEYS[k], unpack(gone[k])) end
end
return { whole(now), rows, numbers, next_end < 0 and '-1' or whole(next_end - now), overdue }
