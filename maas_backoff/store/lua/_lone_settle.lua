-- The straight path of a task that comes alone: one completed settle, or none, and up to two claims without a GPU. It makes
-- no function, which costs more than the commands. Anything else leaves it before the first write, for the general path.
-- tests/store/test_lone.py holds both paths to the same keys and answers.
repeat
  local settles, wanted = ARGV[15] == '1', tonumber(ARGV[7])
  if ARGV[6] == 'call' or ARGV[10] ~= '' or not wanted or not settles and (ARGV[15] ~= '0' or wanted == 0) then break end
  if ARGV[14] ~= '' then break end
  if settles and (ARGV[16] ~= 'lease' or ARGV[17] ~= 'completed' or ARGV[20] ~= '' or ARGV[22] ~= '1') then break end
  if string.find(ARGV[11], 'e:', 1, true) then break end  -- the history bounds the names of errors
  if string.find(ARGV[12], ' ', 1, true) then break end
  local base = ARGV[12] == '-' and ARGV[2] or ARGV[2] .. 'k:' .. ARGV[12] .. ':'
  local ready = base .. 'ready'

  -- Read: the clock, as in _time.lua, and the tasks.
  local meta = redis.call('HMGET', KEYS[7], 'paused', 'token', 'ahead', 'reaped_at', 'lanes')
  if meta[1] or meta[5] or ARGV[13] ~= '' then break end
  local now = tonumber(ARGV[1])
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + time[2] / 1000
  end
  now = math.max(now + (meta[3] or 0), tonumber(meta[4] or 0))
  local next_due = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
  if wanted > 0 and next_due and tonumber(next_due) <= now then break end
  local settled = ARGV[2] .. 't:' .. (ARGV[23] or '')
  if settles then
    local task = redis.pcall('HMGET', settled, 's', 't', 'b')
    if task.err or task[1] ~= 'processing' or task[2] ~= ARGV[24] or task[3] then break end
    local oldest = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2]
    if oldest and (tonumber(oldest) <= now or redis.call('ZCARD', KEYS[4]) >= tonumber(ARGV[9])) then break end
  end
  local ids, first, second = {}, nil, nil
  if wanted > 0 then
    if ARGV[12] ~= '-' and (redis.call('HGET', ARGV[2] .. 'kinds', ARGV[12]) or '') ~= '' then break end
    if redis.call('HGET', KEYS[10], 'id') == ARGV[6] then break end
    if ARGV[8] ~= '0 -' and redis.call('ZCARD', base .. 'suspects') > 0 then break end
    ids = redis.call('ZRANGE', ready, 0, math.min(wanted, 3) - 1)
    if ids[3] then break end
    first = ids[1] and redis.pcall('HMGET', ARGV[2] .. 't:' .. ids[1], 'p', 'n', 'o', 'k', 'u')
    second = ids[2] and redis.pcall('HMGET', ARGV[2] .. 't:' .. ids[2], 'p', 'n', 'o', 'k', 'u')
    -- A hash that is gone, a task that has come back, or one with a deadline.
    if first and (not first[1] or first[2] or first[4]) then break end
    if second and (not second[1] or second[2] or second[4]) then break end
    if first and first[3] and string.sub(first[3], 1, 7) == '{"@by":' then break end
    if second and second[3] and string.sub(second[3], 1, 7) == '{"@by":' then break end
  end
  -- While a Cluster moves the queue, it refuses a missing key: EXISTS ends the script before the first write.
  if (settles or first) and redis.call('EXISTS', KEYS[8]) == 1 then break end

  local stamp = string.format('%.0f', math.floor(now))
  local token = math.max(tonumber(meta[2] or 0) or 0, math.floor(now * 1000))
  local rows, hit = {}, wanted > 0 and #ids >= wanted
  if settles or first then
    -- Try each command, as settle.lua does. If the first HSET is refused, the count is taken back. 7200 is the KEPT_S of
    -- _history.lua.
    local minute = ARGV[2] .. 'h:' .. math.floor(now / 60000)
    local request_s = math.ceil(2 * ARGV[5] / 1000)
    redis.call('ZREM', KEYS[2], '')
    redis.call('ZADD', ARGV[2] .. 'never', 'XX', 0, '')
    local is_kept = redis.call('EXPIRE', settles and minute or KEYS[10], settles and 7200 or request_s) == 1
    if settles and not is_kept then break end  -- the first settle of a minute may begin longer steps; nothing is written yet
    if settles then
      redis.call('HINCRBY', KEYS[7], 'completed', 1)
      local mark = ARGV[24] .. ':' .. ARGV[3]
      local set = redis.pcall('HSET', settled, 's', 'completed', 'd', mark, 'f', stamp, unpack(ARGV, 25))
      if type(set) == 'table' then
        redis.call('HINCRBY', KEYS[7], 'completed', -1)
        error(set.err, 0)
      end
      redis.call('EXPIRE', settled, ARGV[19])
    end

    -- Write.
    if first then
      redis.call('HSET', KEYS[7], 'token', token + #ids)
      local held_by = stamp .. ' ' .. ARGV[4]
      redis.call('HSET', ARGV[2] .. 't:' .. ids[1], 's', 'processing', 't', token + 1, 'n', 1, 'y', held_by)
      rows = { ids[1], token + 1, 1, first[1], first[3], first[4], first[5] }
      if second then
        redis.call('HSET', ARGV[2] .. 't:' .. ids[2], 's', 'processing', 't', token + 2, 'n', 1, 'y', held_by)
        rows[8], rows[9], rows[10], rows[11] = ids[2], token + 2, 1, second[1]
        rows[12], rows[13], rows[14] = second[3], second[4], second[5]
      end
      local claimed = second and ids[1] .. '\n' .. ids[2] or ids[1]
      redis.call('HSET', KEYS[10], 'id', ARGV[6], 'claims', claimed, 'first_token', token + 1, 'fits', '')
      if settles or not is_kept then redis.call('EXPIRE', KEYS[10], request_s) end
      redis.call('ZREM', ready, unpack(ids))
    end
    if settles then
      redis.call('ZREM', KEYS[2], ARGV[23])
      redis.call('ZADD', KEYS[4], string.format('%.0f', math.floor(now + ARGV[19] * 1000)), ARGV[23])
    end
    if first then
      local expiry = string.format('%.0f', math.floor(now + ARGV[5]))
      if second then redis.call('ZADD', KEYS[2], expiry, ids[1], expiry, ids[2])
      else redis.call('ZADD', KEYS[2], expiry, ids[1]) end
    end
    if settles then
      for name, by in string.gmatch(ARGV[11], '(%S+) (%d+)') do
        redis.pcall('HINCRBY', minute, name, by)
        redis.pcall('HINCRBY', KEYS[9], name, by)
      end
      redis.pcall('HINCRBY', minute, 'completed', 1)
    end
    if hit and redis.call('ZRANGE', ready, 0, 0)[1] then redis.pcall('ZADD', base .. 'marker', 0, '0') end
  end
  if meta[3] and tonumber(meta[3]) > 0 then stamp = stamp .. ' ' .. string.format('%.0f', math.floor(meta[3])) end
  next_due = next_due and string.format('%.0f', math.max(0, math.ceil(next_due - now))) or '-1'
  return { stamp, settles and { 'ok' } or {}, rows, next_due, hit and 1 or 0, {} }
until true
