--[[ What waits for a GPU, by what it needs, and who comes first.
KEYS: demands ready hold
ARGV: now prefix
Returns: now, rank of the first ready task or '', what is held for whom or '', and per demand: name, demand, how many wait, rank of the first, ms since it was due, the device it should rather not get or ''
]]
--#include _clock
--#include _queue
local now, prefix = clock(ARGV[1]), ARGV[2]
local rows = {}
local listed = redis.call('HGETALL', KEYS[1])
for n = 1, #listed, 2 do
  local set = gpu_set(prefix, listed[n])
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
  if first[1] then
    local task = redis.call('HMGET', prefix .. 't:' .. first[1], 'u', 'p', 'q')
    local due = task[1] or task[2] and string.match(task[2], '^%d+') or now
    local avoid = task[3] and string.match(task[3], '^%S+ (%S+)') or ''
    rows[#rows + 1] = { listed[n], listed[n + 1], redis.call('ZCARD', set), first[2], whole(now - due), avoid }
  end
end
return { whole(now), redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] or '', redis.call('GET', KEYS[3]) or '', rows }
