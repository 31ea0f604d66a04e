-- Wake-ups: a hint to a sleeping worker, which looks by itself every few seconds, too.

-- For the writing part of a script: a marker that somebody has written over wakes nobody, and stops nothing.
local function wake_with(marker) redis.pcall('ZADD', marker, 0, '0') end
