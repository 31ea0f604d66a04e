--[[ Read the entries of the live workers.
KEYS: workers meta
ARGV: now prefix limit
Returns: name and text in turn
]]
--#include _clock
--#include _time
--#include _time_of
local now, prefix, limit = queue_time_of(ARGV[1], KEYS[2]), ARGV[2], tonumber(ARGV[3])
local entries = {}
for n, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now, '+inf', 'LIMIT', 0, limit)) do
  entries[2 * n - 1], entries[2 * n] = worker, redis.call('GET', prefix .. 'w:' .. worker) or ''
end
return entries
