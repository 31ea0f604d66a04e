--[[ Settle attempts, and claim due tasks for the slots they free. The only script that changes an existing task's state.
KEYS: ready suspects gpu scheduled leases external completed failed cancelled meta marker request
ARGV: now prefix settle_id worker lease_ms request_id claims may_claim_suspect max_finished settles | per settle: id precondition token status delay_ms ttl_s n field value …
Returns: now, answers, claims, ms to the next due task or -1, 1 if the claim hit its count
Preconditions: `lease` (held under token), `expired` (so, and run out), `pending`, `external`, `finished`; an empty token means any.
Answers: 'ok'; 'cancelled' when a requested cancel took the place of a comeback; 'already'; 'lost'; 'unknown'; or the state that stood against it.
A claim is: id token attempt params record overrides retries losses snoozes due suspect. The same request_id gets the same claims again.
Reads everything first; the first write is a ZREM: nothing here is refused when the server's memory is full.
]]
--#include _clock
--#include _queue
--#include _task
--#include _settle
--#include _claim
local ready, suspects, gpu, scheduled, leases, external = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local finished = { completed = KEYS[7], failed = KEYS[8], cancelled = KEYS[9] }
local meta, marker, request = KEYS[10], KEYS[11], KEYS[12]
local now, prefix, settle_id, worker, lease_ms = clock(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local request_id, wanted, may_claim_suspect = ARGV[6], tonumber(ARGV[7]), ARGV[8] == '1'
local max_finished, settles = tonumber(ARGV[9]), tonumber(ARGV[10])

-- Read: a key that never is. While a Cluster moves the queue, key by key, it refuses every key that is not there, and an
-- index that gets empty half-way would be one. So this fails before anything is written.
redis.call('ZCARD', prefix .. 'never')

-- Read: the tasks to settle.
local items = judge_all(11, settles, now, prefix, settle_id, leases)
local adding = {}
for _, item in ipairs(items) do
  if item.answer == 'ok' then
    -- A request that an earlier run has met does not count against a task that is taken up again.
    if item.status == 'pending' and item.cancel and item.kind ~= 'finished' then
      item.status = 'cancelled'
      item.answer = 'cancelled'
    end
    item.accepted = true
    if finished[item.status] then adding[item.status] = (adding[item.status] or 0) + 1 end
  end
end
local dropped = {}
for status, count in pairs(adding) do dropped[status] = overflow(finished[status], count, max_finished, prefix, status) end

-- Read: the tasks to claim.
local claims, moves, orphans, replayed = {}, {}, {}, false
if wanted > 0 then
  local last = redis.call('HMGET', request, 'id', 'claims')
  if last[1] == request_id then
    replayed = true
    claims = replay(last[2], prefix)
  else
    local candidates = {}
    local function consider(id, score, from, to, task)
      candidates[#candidates + 1] = { id = id, score = score, from = from, to = to, task = task }
    end
    local promoted = 0
    local due = redis.call('ZRANGEBYSCORE', scheduled, '-inf', now, 'WITHSCORES', 'LIMIT', 0, math.max(2 * wanted, 100))
    for d = 1, #due, 2 do
      local id, task = due[d], read_task(prefix, due[d])
      if not task then
        append(orphans, scheduled, id)
      else
        local head_start, class = creation(task[1])
        local score = rank(tonumber(due[d + 1]), head_start)
        local to = class ~= '-' and gpu or task[11] == '1' and suspects or ready
        if to == ready then
          consider(id, tonumber(score), scheduled, ready, task)
          promoted = promoted + 1
        else
          moves[#moves + 1] = { id = id, score = score, from = scheduled, to = to }
        end
      end
    end
    if may_claim_suspect then
      for _, id in ipairs(redis.call('ZRANGE', suspects, 0, 0)) do
        local task = read_task(prefix, id)
        if task then consider(id, -1, suspects, nil, task) else append(orphans, suspects, id) end
      end
    end
    local heads = redis.call('ZRANGE', ready, 0, wanted - 1, 'WITHSCORES')
    for h = 1, #heads, 2 do consider(heads[h], tonumber(heads[h + 1]), ready, nil, nil) end
    if promoted > 0 then table.sort(candidates, function(a, b) return a.score < b.score end) end
    for _, candidate in ipairs(candidates) do
      if #claims >= wanted then
        if candidate.to then
          moves[#moves + 1] = { id = candidate.id, score = string.format('%.0f', candidate.score), from = scheduled, to = ready }
        end
      else
        candidate.task = candidate.task or read_task(prefix, candidate.id)
        if candidate.task then claims[#claims + 1] = candidate else append(orphans, candidate.from, candidate.id) end
      end
    end
  end
end

local dropped_entries = next(orphans) ~= nil

-- Write: the settled.
redis.call('ZREM', leases, '')
local from, to, wake, publish = {}, {}, false, {}
local function wait(id, due, record, suspect)
  local head_start, class = creation(record)
  if due > now then
    append(to, scheduled, string.format('%.4f', due), id)
  else
    local index = class ~= '-' and gpu or suspect and suspects or ready
    append(to, index, rank(due, head_start), id)
    wake = wake or index ~= gpu
  end
end
local earliest = redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')[2]
for _, item in ipairs(items) do
  if item.accepted then
    local fields = item.fields
    local function set(name, value)
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
    if item.was == 'processing' then append(from, leases, item.id)
    elseif item.was == 'pending' then
      for _, index in ipairs({ ready, suspects, gpu, scheduled }) do append(from, index, item.id) end
    elseif item.was == 'external' then append(from, external, item.id)
    else
      append(from, finished[item.was], item.id)
      redis.call('PERSIST', item.key)
      redis.call('HDEL', item.key, 'x', 'f', 'r', 'e', 'g', 'm', 'q')
      item.suspect = false
    end
    set('s', item.status)
    set('d', item.given .. ':' .. settle_id)
    if item.status == 'pending' then
      local due = now + item.delay
      for f = 1, #fields, 2 do if fields[f] == 'q' then item.suspect = fields[f + 1] == '1' end end
      set('u', whole(due))
      wait(item.id, due, item.record, item.suspect)
      wake = wake or due > now and due < tonumber(earliest or math.huge)
    elseif item.status == 'external' then
      local token = whole(redis.call('HINCRBY', meta, 'token', 1))
      set('t', token)
      set('d', token .. ':' .. settle_id)  -- under its new token, so that a repeated mark is answered "already"
      set('b', whole(now))
      append(to, external, whole(now), item.id)
    else
      set('f', whole(now))
      append(to, finished[item.status], whole(now + item.ttl * 1000), item.id)
      if item.waited and tonumber(item.waited) > now then publish[#publish + 1] = item.id end
    end
    redis.call('HSET', item.key, unpack(fields))
    -- How far an attempt got is over with it.
    if item.status == 'pending' then redis.call('HDEL', item.key, 'g', 'm') end
    if finished[item.status] then redis.call('EXPIRE', item.key, item.ttl) end
  end
end
for status, ids in pairs(dropped) do
  for _, id in ipairs(ids) do append(from, finished[status], id) end
end
remove_all(from)
add_all(to)
for status, count in pairs(adding) do
  local index = finished[status]
  for _, id in ipairs(dropped[status]) do
    if dropped[status].theirs[id] then redis.call('UNLINK', prefix .. 't:' .. id) end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', now, 'LIMIT', 0, 2 * count)) do
    redis.call('ZREM', index, id)
  end
  redis.call('HINCRBY', meta, status, count)
end
for _, id in ipairs(publish) do redis.call('PUBLISH', prefix .. 'finished', id) end

-- Write: the claimed.
local rows = {}
if not replayed then
  local gone, moved = orphans, {}
  for _, move in ipairs(moves) do
    append(gone, move.from, move.id)
    append(moved, move.to, move.score, move.id)
    wake = wake or move.to == suspects
  end
  for _, claim in ipairs(claims) do append(gone, claim.from, claim.id) end
  remove_all(gone)
  add_all(moved)
  if #claims > 0 then
    local last_token = redis.call('HINCRBY', meta, 'token', #claims)
    local expiry, started, leased, record = whole(now + lease_ms), whole(now), {}, {}
    for n, claim in ipairs(claims) do
      claim.token = whole(last_token - #claims + n)
      claim.attempt = whole(tonumber(claim.task[4] or 0) + 1)
      local key = prefix .. 't:' .. claim.id
      redis.call('HSET', key, 's', 'processing', 't', claim.token, 'n', claim.attempt, 'b', started, 'y', worker)
      leased[#leased + 1] = expiry
      leased[#leased + 1] = claim.id
      record[#record + 1] = claim.id .. '\n' .. claim.token .. '\n'
    end
    redis.call('ZADD', leases, unpack(leased))
    redis.call('HSET', request, 'id', request_id, 'claims', table.concat(record))
    redis.call('PEXPIRE', request, whole(2 * lease_ms))
  end
end
for n, claim in ipairs(claims) do
  local task = claim.task
  rows[n] = { claim.id, claim.token, claim.attempt, task[5], task[1], task[6], task[7], task[8], task[9], task[10], task[11] }
end

-- An entry that was dropped took the place of a task that may be there.
local hit = wanted > 0 and (#claims >= wanted or dropped_entries)
if hit then wake = wake or redis.call('ZCARD', ready) > 0 end
-- This worker takes no further suspect until this one has ended; another may.
local took_suspect = false
for _, claim in ipairs(claims) do took_suspect = took_suspect or claim.from == suspects end
if took_suspect then wake = wake or redis.call('ZCARD', suspects) > 0 end
if wake then redis.call('ZADD', marker, 0, '0') end
local next_due = redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')[2]
local answers = {}
for n, item in ipairs(items) do answers[n] = item.answer end
return { whole(now), answers, rows, next_due and whole(math.max(0, math.ceil(next_due - now))) or '-1', hit and 1 or 0 }
