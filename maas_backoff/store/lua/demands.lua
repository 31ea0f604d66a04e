--[[ What waits for a GPU, by what it needs, and who comes first.
KEYS: demands ready hold meta
ARGV: now prefix
Returns: now, rank of the first ready task or '', what is held for whom or '', and per demand: name of its set, demand, rank of the first, ms since it was due, the device it should rather not get or ''
Of a paused queue there is no demand. Of a set that several demands share, each of those among its first tasks.
]]
--#include _clock
--#include _time
--#include _queue
--#include _task
local state, prefix = redis.call('HMGET', KEYS[4], 'ahead', 'reaped_at', 'paused'), ARGV[2]
local now = queue_time(clock(ARGV[1]), state[1], state[2])
local rows = {}
local listed = state[3] and {} or redis.call('HKEYS', KEYS[1])
for _, name in ipairs(listed) do
  local seen = {}
  local first = redis.call('ZRANGE', gpu_set(prefix, name), 0, is_shared(name) and 31 or 0, 'WITHSCORES')
  for n = 1, #first, 2 do
    local task = fields_of(prefix .. 't:' .. first[n], 'u', 'p', 'q') or {}
    -- One whose hash is gone or of the wrong type is dropped by whoever claims it: it needs nothing.
    local demand = not is_shared(name) and name or task[2] and demand_of(task[3], task[2]) or '0:0'
    if not seen[demand] then
      seen[demand] = true
      local due = task[1] or task[2] and string.match(task[2], '^%d+') or now
      local avoid = task[3] and string.match(task[3], '^%S+ (%S+)') or ''
      rows[#rows + 1] = { name, demand, first[n + 1], whole(now - due), avoid }
    end
  end
end
local held = redis.call('GET', KEYS[3]) or ''
if (tonumber(string.match(held, '^%d+')) or 0) <= now then held = '' end
return { whole(now), redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] or '', string.match(held, '^%S+ (.*)$') or '', rows }
