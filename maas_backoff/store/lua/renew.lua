--[[ Renew the leases of a worker, and its entry in the registry.
KEYS: leases workers info meta host name quiet
ARGV: now prefix worker info lease_ms process | per lease: id token
Returns: tokens of lost leases, ids of tasks to cancel, name and process of each worker of its host, the worker that has its name or '', 1 if the worker is quiet
Nothing about the host, the name or the quiet keeps leases from being renewed.
The first write is a ZREM: a bare ZADD would be refused when the server's memory is full, and every lease would run out.
]]
--#include _clock
--#include _time
--#include _time_of
--#include _task
local leases, workers, info = KEYS[1], KEYS[2], KEYS[3]
local now, prefix, worker, lease_ms = queue_time_of(ARGV[1], KEYS[4]), ARGV[2], ARGV[3], tonumber(ARGV[5])
local host, name, quiet, process = KEYS[5], KEYS[6], KEYS[7], ARGV[6]
local KEPT_S = 86400

local expiry, renewed, lost, cancelled = whole(now + lease_ms), {}, {}, {}
for i = 7, #ARGV, 2 do
  local id, token = ARGV[i], ARGV[i + 1]
  local task = fields_of(prefix .. 't:' .. id, 's', 't', 'x')
  if task and task[1] == 'processing' and task[2] == token then
    renewed[#renewed + 1] = expiry
    renewed[#renewed + 1] = id
    if task[3] then cancelled[#cancelled + 1] = id end
  else
    lost[#lost + 1] = token
  end
end

-- Each command is tried before the first real write.
redis.call('ZREM', leases, '')
redis.call('ZADD', leases, 'XX', 0, '')
redis.call('ZADD', workers, 'XX', 0, '')
redis.call('ZREMRANGEBYSCORE', workers, 1, 0)
redis.call('SET', info, ARGV[4], 'PX', lease_ms)
redis.call('ZADD', workers, expiry, worker)
redis.call('ZREMRANGEBYSCORE', workers, '-inf', now)
for i = 1, #renewed, 1000 do redis.call('ZADD', leases, unpack(renewed, i, math.min(i + 999, #renewed))) end

local neighbours = {}
if process ~= '' then
  redis.pcall('HSET', host, worker, process)
  redis.pcall('EXPIRE', host, KEPT_S)
  neighbours = redis.pcall('HGETALL', host)
end
local named = redis.pcall('GET', name)
if named == worker then redis.pcall('SET', name, worker, 'PX', lease_ms) end
local is_quiet = redis.pcall('EXISTS', quiet) == 1
if is_quiet then redis.pcall('EXPIRE', quiet, KEPT_S) end
return { lost, cancelled, neighbours.err and {} or neighbours, type(named) == 'string' and named or '', is_quiet and 1 or 0 }
