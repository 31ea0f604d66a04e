-- The straight path of a task that is created alone, is due now, and has no GPU demand and no deadline. It makes no function
-- and no table, which cost more than the commands. Anything else is left to the general path, with nothing written but a
-- marker.
-- tests/store/test_lone.py holds both paths to the same keys and answers.
local is_plain = #ARGV == 14 and not string.find(ARGV[9], ' ', 1, true)
local kind = not is_plain and #ARGV == 14 and string.match(ARGV[9], '^%S+ 0 0 %- (%S+)$')
if (is_plain or kind) and ARGV[4] == '' and ARGV[5] == '0' and ARGV[10] == '' and string.sub(ARGV[11], 1, 7) ~= '{"@by":' then
  local base = kind and ARGV[2] .. 'k:' .. kind .. ':' or ARGV[2]
  local task, meta = ARGV[2] .. 't:' .. ARGV[13], redis.call('HMGET', KEYS[3], 'paused', 'ahead', 'reaped_at')
  -- In the order of the general path: it raises the same errors.
  if not meta[1] and redis.call('HEXISTS', KEYS[2], ARGV[3]) == 1
    and (is_plain or redis.call('HGET', ARGV[2] .. 'kinds', kind) == '') and redis.call('EXISTS', task) == 0
    and type(redis.pcall('ZADD', base .. 'marker', 0, '0')) == 'number' then
    local now = tonumber(ARGV[1])
    if not now then
      local time = redis.call('TIME')
      now = time[1] * 1000 + time[2] / 1000
    end
    -- See _time.lua: queue_time.
    now = math.max(now + (meta[2] or 0), tonumber(meta[3] or 0))
    local creation = string.format('%.0f %s\n%s', math.floor(now), ARGV[9], ARGV[14])
    if ARGV[11] == '' then redis.call('HSET', task, 'p', creation)
    else redis.call('HSET', task, 'p', creation, 'o', ARGV[11]) end
    -- See _queue.lua: rank.
    local entered = redis.pcall('ZADD', base .. 'ready', math.floor((now - 1577836800000) * 4096), ARGV[13])
    if type(entered) == 'table' then
      redis.call('UNLINK', task)
      error(entered.err, 0)
    end
    return { 'created' }
  end
end
