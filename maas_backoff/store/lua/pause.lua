--[[ Stop all claims of a queue, or let them go on.
KEYS: meta marker gpu_marker
ARGV: now on
Returns: 1 changed, 0 it was so before
The first write is an HDEL: a server whose memory is full does not refuse to pause.
]]
--#include _clock
local meta, on = KEYS[1], ARGV[2] == '1'
local stamp, was = whole(clock(ARGV[1])), redis.call('HEXISTS', meta, 'paused') == 1
redis.call('HDEL', meta, 'paused')
if on then
  redis.call('HSET', meta, 'paused', stamp)
else
  -- One sleeper wakes, and wakes the next while there is work.
  redis.call('ZADD', KEYS[2], 0, '0')
  redis.call('ZADD', KEYS[3], 0, '0')
end
return was == on and 0 or 1
