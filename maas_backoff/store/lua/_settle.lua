-- Settling: the change of one existing task's state, if its precondition holds.
-- An item is: id precondition token status delay_ms ttl_s n field value … (n pairs)

-- Reads the items and their tasks, and judges each; writes nothing.
local function judge_all(first, count, now, prefix, settle_id, leases)
  local items, i = {}, first
  for _ = 1, count do
    local item = {
      id = ARGV[i], kind = ARGV[i + 1], given = ARGV[i + 2], status = ARGV[i + 3],
      delay = tonumber(ARGV[i + 4]), ttl = tonumber(ARGV[i + 5]), fields = {},
    }
    local pairs_end = i + 6 + 2 * tonumber(ARGV[i + 6])
    for j = i + 7, pairs_end do item.fields[#item.fields + 1] = ARGV[j] end
    i = pairs_end + 1

    item.key = prefix .. 't:' .. item.id
    local task = fields_of(item.key, 'c', 's', 't', 'd', 'x', 'w', 'q') or {}
    local state, token = task[2] or 'pending', task[3] or '0'
    if item.given == '' then item.given = token end
    item.record, item.was, item.token = task[1], state, token
    item.waited, item.suspect = task[6], task[7] == '1'
    item.cancel = task[5] and item.kind ~= 'finished'  -- a retry from outside comes after the request

    local same = token == item.given
    local held = state == 'processing' and same
    if not task[1] then item.answer = 'unknown'
    elseif task[4] == item.given .. ':' .. settle_id then item.answer = 'already'
    elseif item.kind == 'lease' then item.answer = held and 'ok' or 'lost'
    elseif item.kind == 'expired' then
      local expiry = tonumber(redis.call('ZSCORE', leases, item.id) or 0)
      item.answer = held and expiry <= now and 'ok' or 'lost'
    elseif item.kind == 'finished' then
      item.answer = (state == 'failed' or state == 'cancelled') and 'ok' or state
    else item.answer = state == item.kind and same and 'ok' or state end
    items[#items + 1] = item
  end
  return items
end

-- The oldest of a finished state beyond the limit. `theirs`: ids whose task is still that one, and not made anew.
local function overflow(key, adding, limit, prefix, status)
  local excess = redis.call('ZCARD', key) + adding - limit
  if excess <= 0 then return { theirs = {} } end
  local ids = redis.call('ZRANGE', key, 0, math.min(excess, 2 * adding) - 1)
  local theirs = {}
  for _, id in ipairs(ids) do
    local task = fields_of(prefix .. 't:' .. id, 's')
    theirs[id] = task and task[1] == status
  end
  ids.theirs = theirs
  return ids
end
