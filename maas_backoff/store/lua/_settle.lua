-- Settling: the change of one existing task's state, if its precondition holds.
-- A group is: precondition status delay_ms ttl_s tally n count | `count` times: id token, n times: field value

-- Whether a stream has all parts of an attempt: the server may have lost some after it has acknowledged them. A stream that a person
-- has overwritten stops no settle.
local function has_parts(tasks, id, emitted, token, parts)
  local length = redis.pcall('XLEN', string.sub(tasks, 1, -3) .. 'parts:' .. id)
  if type(length) == 'table' then
    if not string.find(length.err, 'WRONGTYPE', 1, true) then error(length.err, 0) end
    return true
  end
  return length >= parts and string.match(emitted or '', '^%d+') == token
end

-- Reads the items and their tasks, and judges each; writes nothing. A pending task whose deadline has passed counts as
-- cancelled.
local function judge_all(first, groups, now, tasks, settle_id, leases)
  local items, i = {}, first
  for _ = 1, groups do
    local kind, status, delay, ttl = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
    local parts = string.match(kind, '^lease (%d+)$')
    if parts then kind = 'lease' end
    local tally, fields, count = ARGV[i + 4], 2 * ARGV[i + 5], tonumber(ARGV[i + 6])
    local expiry = whole(now + ttl * 1000)
    i = i + 7
    for _ = 1, count do
      local id, given = ARGV[i], ARGV[i + 1]
      local key = tasks .. id
      local task = fields_of(key, 's', 't', 'b') or {}
      local state, token, emitted = task[1], task[2] or '0', task[3]
      if given == '' then given = token end
      local created, counts, demand, overrides, is_to_cancel, late = true, false, false, false, false, false
      -- A running task exists. Only a comeback, and a task that waits, needs more of its fields.
      if not state or state == 'pending' or status == 'pending' then
        local more = fields_of(key, 'p', 'k', 'q', 'o', 'x') or {}
        created, counts, demand, overrides, is_to_cancel = more[1], more[2], more[3], more[4], more[5]
        state = state or 'pending'
        late = overrides and state == 'pending' and is_over(overrides, now)
      end

      local answer
      local same = token == given
      local held = state == 'processing' and same
      if not created then answer = 'unknown'
      elseif held and parts and not has_parts(tasks, id, emitted, given, tonumber(parts)) then answer = 'unsent'
      elseif held and kind == 'lease' then answer = 'ok'
      elseif fields_of(key, 'd')[1] == given .. ':' .. settle_id then
        answer = state == 'cancelled' and status == 'pending' and state or 'already'
      elseif kind == 'lease' then answer = 'lost'
      elseif kind == 'expired' then
        local expiry = tonumber(redis.call('ZSCORE', leases, id) or 0)
        answer = held and expiry <= now and 'ok' or 'lost'
      elseif kind == 'finished' then answer = same and (late or state == 'failed' or state == 'cancelled') and 'ok' or state
      elseif kind == 'overdue' then answer = late and 'ok' or 'lost'
      elseif late then answer = 'cancelled'
      else answer = state == kind and same and 'ok' or state end

      local accepted = answer == 'ok'
      -- A cancel request that an earlier attempt has met does not stop a task that is retried.
      if accepted and is_to_cancel and status == 'pending' and kind ~= 'finished' then answer = 'cancelled' end
      -- Sixteen values: one more would double the memory of the table. A settle that is not a worker's has more.
      local item = {
        id = id, key = key, given = given, answer = answer, accepted = accepted,
        status = answer == 'cancelled' and answer or status, delay = delay, ttl = ttl, expiry = expiry, tally = tally,
        first = i + 2, last = i + 1 + fields,
        was = state, created = created, demand = demand, suspect = is_suspect(counts),
      }
      if overrides or kind ~= 'lease' then keep_deadline(item, kind, overrides, now) end
      if emitted then item.emitted = emitted end
      items[#items + 1] = item
      i = i + 2 + fields
    end
  end
  return items
end

-- The oldest tasks of a finished state beyond the limit. `theirs`: ids whose task is still the finished one, and was not
-- created anew. A few entries past their time to live are put into `from`.
local function overflow(key, adding, limit, tasks, status, from, now)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, 2 * adding)) do append(from, key, id) end
  local excess = redis.call('ZCARD', key) + adding - limit
  if excess <= 0 then return { theirs = {} } end
  local ids = redis.call('ZRANGE', key, 0, math.min(excess, 2 * adding) - 1)
  local theirs, emitted = {}, {}
  for _, id in ipairs(ids) do
    local task = fields_of(tasks .. id, 's', 'b')
    theirs[id] = task and task[1] == status
    emitted[id] = task and task[2]
  end
  ids.theirs, ids.emitted = theirs, emitted
  return ids
end
