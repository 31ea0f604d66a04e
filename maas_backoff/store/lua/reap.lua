--[[ List leases that ran out, and drop the index entries of finished tasks that are gone.
KEYS: leases completed failed cancelled meta
ARGV: now prefix gap_ms grace_ms limit
Returns: now, and per lease: id token record overrides attempt retries losses snoozes started worker
A gap is a time in which nobody looked: the server, or all workers, stood still. Live workers then get grace_ms to renew, and no lease is listed.
Changes no task: the leases that ran out are settled by settle.lua.
]]
--#include _clock
local leases, meta = KEYS[1], KEYS[5]
local now, prefix, gap_ms, grace_ms, limit = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local seen = redis.call('HMGET', meta, 'reaped_at', 'grace_until')
local last, grace_until = tonumber(seen[1] or 0), tonumber(seen[2] or 0)
-- A clock that was set back must not leave a grace that lasts for hours.
grace_until = math.min(grace_until, now + grace_ms)
if now - last > gap_ms or now < last then grace_until = now + grace_ms end

local rows = {}
if now >= grace_until then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, limit)) do
    local task = redis.pcall('HMGET', prefix .. 't:' .. id, 't', 'c', 'o', 'n', 'k', 'l', 'z', 'b', 'y')
    if task.err then task = { false, false } end  -- a key of another type: no task
    table.insert(task, 1, id)
    rows[#rows + 1] = task
  end
end

redis.call('ZREM', leases, '')
redis.call('HSET', meta, 'reaped_at', whole(now), 'grace_until', string.format('%.0f', grace_until))
for k = 2, 4 do
  local gone = redis.call('ZRANGEBYSCORE', KEYS[k], '-inf', now, 'LIMIT', 0, 500)
  if #gone > 0 then redis.call('ZREM', KEYS[k], unpack(gone)) end
end
return { whole(now), rows }
