--[[ Read one page of the tasks in one state.
KEYS: meta | the indexes of the state
ARGV: now prefix limit index score skip
Returns: now, the tasks' ids and fields, index, score, skip, whether the queue is paused (1 or 0)
The cursor is the index to go on with (0: the end), the score reached there, and how many tasks of that score were read.
]]
--#include _clock
local now, prefix, limit = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local index, score, skip = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])

local tasks = {}
while #tasks < limit and KEYS[index + 1] do
  local page = redis.call('ZRANGEBYSCORE', KEYS[index + 1], score, '+inf', 'WITHSCORES', 'LIMIT', skip, limit - #tasks)
  for i = 1, #page, 2 do
    local fields = redis.call('HGETALL', prefix .. 't:' .. page[i])
    -- Past its time to live, but not trimmed yet.
    tasks[#tasks + 1] = { page[i], fields }
    skip = page[i + 1] == score and skip + 1 or 1
    score = page[i + 1]
  end
  if #tasks < limit then
    index, score, skip = index + 1, '-inf', 0
  end
end
if not KEYS[index + 1] then index = 0 end
return { whole(now), tasks, index, score, skip, redis.call('HEXISTS', KEYS[1], 'paused') }
