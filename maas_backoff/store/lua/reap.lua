--[[ List leases that ran out, drop the index entries of finished tasks that are gone, and measure the pace.
KEYS: leases completed failed cancelled meta
ARGV: now prefix gap_ms grace_ms limit
Returns: now, and per lease: id token creation overrides attempt counts held_by
A clock that was set back takes the leases back with it: those of dead workers would lie in the future for as long.
A gap is a time in which nobody looked: the server, or all workers, stood still. Live workers then get grace_ms to renew, and no lease is listed.
Changes no task: the leases that ran out are settled by settle.lua.
]]
--#include _clock
--#include _task
local leases, meta = KEYS[1], KEYS[5]
local now, prefix, gap_ms, grace_ms, limit = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local seen = redis.call('HMGET', meta, 'reaped_at', 'grace_until')
local last, grace_until = tonumber(seen[1] or 0), tonumber(seen[2] or 0)
-- A clock that was set back must not leave a grace that lasts for hours.
grace_until = math.min(grace_until, now + grace_ms)
if now - last > gap_ms or now < last then grace_until = now + grace_ms end

-- How many tasks are finished per ms: of the last 30 seconds and more, or of the last minutes when nobody looked.
local pace = redis.call('HMGET', meta, 'paced_at', 'paced_total', 'completed', 'failed', 'cancelled')
local paced_at = tonumber(pace[1] or 0)
local total = tonumber(pace[3] or 0) + tonumber(pace[4] or 0) + tonumber(pace[5] or 0)

-- One step, bounded: a fleet has fewer slots than that.
local early = last - now > 1000 and redis.call('ZRANGE', leases, 0, 9999, 'WITHSCORES') or {}

local rows = {}
if now >= grace_until then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, limit)) do
    local task = fields_of(prefix .. 't:' .. id, 't', 'p', 'o', 'n', 'k', 'y') or { false, false }
    task[2] = task[2] and string.match(task[2], '^[^\n]*\n?')  -- without the params
    table.insert(task, 1, id)
    rows[#rows + 1] = task
  end
end

redis.call('ZREM', leases, '')
for i = 1, #early, 2 do redis.call('ZADD', leases, whole(early[i + 1] - (last - now)), early[i]) end
redis.call('HSET', meta, 'reaped_at', whole(now), 'grace_until', string.format('%.0f', grace_until))
if paced_at == 0 or math.abs(now - paced_at) >= 30000 then
  local per_ms = now > paced_at and (total - tonumber(pace[2] or 0)) / (now - paced_at) or 0
  redis.call('HSET', meta, 'pace', string.format('%.9f', per_ms), 'paced_at', whole(now), 'paced_total', whole(total))
end
for k = 2, 4 do
  local gone = redis.call('ZRANGEBYSCORE', KEYS[k], '-inf', now, 'LIMIT', 0, 500)
  if #gone > 0 then redis.call('ZREM', KEYS[k], unpack(gone)) end
end
return { whole(now), rows }
