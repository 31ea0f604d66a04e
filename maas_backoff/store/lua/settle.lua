--[[ Settle attempts, and claim due tasks for the slots they free. The only script that changes an existing task's state.
KEYS: ready suspects scheduled leases external completed failed cancelled meta marker watched totals request
ARGV: now prefix settle_id worker lease_ms request_id claims may_claim_suspect max_finished fits tally groups | per group: precondition status delay_ms ttl_s n count, and per settle of it: id token, n times: field value
Returns: now, answers, claims, ms to the next due task or -1, 1 if the claim hit its count, and per claim on a fit: its number and what the task needs
Preconditions: `lease` (held under token), `expired` (so, and run out), `pending`, `external`, `finished`; an empty token means any.
Answers: 'ok'; 'cancelled' when a requested cancel took the place of a comeback; 'already'; 'lost'; 'unknown'; or the state that stood against it.
`fits` is '' or, for each claim, a line "demand device": only tasks that wait for a GPU are claimed then, and only so many of each demand.
A claim is seven values: id token attempt creation overrides counts due. The same request_id gets the same claims again. A paused queue gives none.
`tally` is lines "name number" for the history, which are taken once: with the first of equal calls.
Reads everything first; the first write is a ZREM: nothing here is refused when the server's memory is full.
]]
--#include _clock
--#include _queue
--#include _task
--#include _settle
--#include _claim
--#include _history
--#include _watched
local ready, suspects, scheduled, leases, external = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local finished = { completed = KEYS[6], failed = KEYS[7], cancelled = KEYS[8] }
local meta, marker, watched, totals, request = KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local now, prefix, settle_id, worker, lease_ms = clock(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local request_id, wanted, may_claim_suspect = ARGV[6], tonumber(ARGV[7]), ARGV[8] == '1'
local max_finished, fits, tally, groups = tonumber(ARGV[9]), ARGV[10], ARGV[11], tonumber(ARGV[12])
local tasks, stamp = prefix .. 't:', whole(now)

-- Read: a key that never is. While a Cluster moves the queue, key by key, it refuses every key that is not there, and an
-- index that gets empty half-way would be one. So this fails before anything is written.
redis.call('ZCARD', prefix .. 'never')

-- Read: the tasks to settle.
local items = judge_all(13, groups, now, tasks, settle_id, leases)
local adding, dropped = {}, {}
for _, item in ipairs(items) do
  if item.accepted and finished[item.status] then adding[item.status] = (adding[item.status] or 0) + 1 end
end
for status, count in pairs(adding) do dropped[status] = overflow(finished[status], count, max_finished, tasks, status) end

local state = redis.call('HMGET', meta, 'paused', 'token')
local paused = state[1]
-- The last token: never below the clock in microseconds. A server that has lost its newest data, or all of it, gives none
-- a second time, if its clock is not behind that of the one before.
local token = math.max(tonumber(state[2] or 0) or 0, math.floor(now * 1000))

-- Read: the tasks to claim, the due ones of `scheduled` in their turn among the ready ones.
local claims, moves, orphans, replayed = {}, {}, {}, false
if wanted > 0 then
  local last = redis.call('HMGET', request, 'id', 'claims', 'first_token', 'fits')
  if last[1] == request_id then
    replayed = true
    claims = replay(last[2], last[3], last[4], tasks)
  elseif not paused then
    local candidates = {}
    local due = redis.call('ZRANGEBYSCORE', scheduled, '-inf', now, 'WITHSCORES', 'LIMIT', 0, math.max(2 * wanted, 100))
    for d = 1, #due, 2 do
      local id, task = due[d], read_task(tasks .. due[d])
      if not task then
        append(orphans, scheduled, id)
      else
        local head_start, demand = head_start_and_demand(task[CREATION])
        local score = rank(tonumber(due[d + 1]), head_start)
        local to = is_suspect(task[COUNTS]) and suspects or ready
        if demand ~= '-' then
          local raised = redis.call('HGET', tasks .. id, 'q')
          moves[#moves + 1] = { id = id, score = score, from = scheduled, demand = demand_of(raised, task[CREATION]) }
        elseif to == ready and fits == '' then
          candidates[#candidates + 1] = { id = id, score = tonumber(score), from = scheduled, task = task }
        else
          moves[#moves + 1] = { id = id, score = score, from = scheduled, to = to }
        end
      end
    end
    local function claim(id, from, task)
      task = task or read_task(tasks .. id)
      if task then
        claims[#claims + 1] = { id = id, from = from, task = task, token = 0, attempt = (task[ATTEMPT] or 0) + 1 }
      else
        append(orphans, from, id)
      end
    end
    if fits ~= '' then
      claims = claims_on_fits(fits, prefix, tasks, may_claim_suspect, orphans)
    else
      local suspect = may_claim_suspect and redis.call('ZRANGE', suspects, 0, 0)[1]
      if suspect then claim(suspect, suspects) end
      if #candidates == 0 then
        -- Without their scores, which take the server longer to write out than to find.
        for _, id in ipairs(redis.call('ZRANGE', ready, 0, wanted - 1)) do
          if #claims < wanted then claim(id, ready) end
        end
      else
        local heads = redis.call('ZRANGE', ready, 0, wanted - 1, 'WITHSCORES')
        for h = 1, #heads, 2 do
          candidates[#candidates + 1] = { id = heads[h], score = tonumber(heads[h + 1]), from = ready }
        end
        table.sort(candidates, function(a, b) return a.score < b.score end)
        for _, candidate in ipairs(candidates) do
          local id, from = candidate.id, candidate.from
          if #claims < wanted then
            claim(id, from, candidate.task)
          elseif from == scheduled then
            moves[#moves + 1] = { id = id, score = string.format('%.0f', candidate.score), from = scheduled, to = ready }
          end
        end
      end
    end
  end
end

local dropped_entries = next(orphans) ~= nil
local is_watched = #items + #claims > 0 and redis.call('EXISTS', watched) == 1

-- Write: the settled.
redis.call('ZREM', leases, '')
local from, to, wake, wake_gpu, changed = {}, {}, false, false, {}
local earliest = #items > 0 and tonumber(redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')[2]) or math.huge
for _, item in ipairs(items) do
  if item.accepted then
    local id, key, was, status = item.id, item.key, item.was, item.status
    local mark = item.given .. ':' .. settle_id
    changed[#changed + 1] = id
    if was == 'processing' then append(from, leases, id)
    elseif was == 'pending' then
      for _, index in ipairs({ ready, suspects, scheduled }) do append(from, index, id) end
      for _, index in ipairs(gpu_sets(prefix)) do append(from, index, id) end
    elseif was == 'external' then append(from, external, id)
    else
      append(from, finished[was], id)
      redis.call('PERSIST', key)
      redis.call('HDEL', key, 'x', 'f', 'r', 'e', 'g', 'm')
      item.suspect = false
    end
    if status == 'pending' then
      local due, raised, created = now + item.delay, item.demand, item.created
      for f = item.first, item.last, 2 do
        local name, value = ARGV[f], ARGV[f + 1]
        if name == 'k' then item.suspect = is_suspect(value)
        elseif name == 'q' then raised = value
        elseif name == 'u' then due = tonumber(value)
        elseif name == 'p' then created = value end
      end
      redis.call('HSET', key, 's', status, 'd', mark, 'u', whole(due), unpack(ARGV, item.first, item.last))
      -- How far an attempt got is over with it.
      redis.call('HDEL', key, 'g', 'm')
      local head_start, demand = head_start_and_demand(created)
      if due > now then
        append(to, scheduled, string.format('%.4f', due), id)
        wake = wake or due < earliest
      elseif demand ~= '-' then
        append(to, listed_gpu_set(prefix, demand_of(raised, created)), rank(due, head_start), id)
        wake_gpu = true
      else
        append(to, item.suspect and suspects or ready, rank(due, head_start), id)
        wake = true
      end
    elseif status == 'external' then
      token = token + 1
      redis.call('HSET', meta, 'token', whole(token))
      -- The mark is under the new token, so that a repeated call is answered "already".
      mark = whole(token) .. ':' .. settle_id
      redis.call('HSET', key, 's', status, 'd', mark, 't', whole(token), 'y', stamp .. ' ', unpack(ARGV, item.first, item.last))
      append(to, external, stamp, id)
    else
      redis.call('HSET', key, 's', status, 'd', mark, 'f', stamp, unpack(ARGV, item.first, item.last))
      redis.call('EXPIRE', key, item.ttl)
      append(to, finished[status], item.expiry, id)
    end
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
    if dropped[status].theirs[id] then redis.call('UNLINK', tasks .. id) end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', now, 'LIMIT', 0, 2 * count)) do
    redis.call('ZREM', index, id)
  end
  redis.call('HINCRBY', meta, status, count)
end
if #changed > 0 then note_history(prefix, totals, now, tally, adding) end

-- Write: the claimed.
if not replayed then
  local gone, moved = orphans, {}
  for _, move in ipairs(moves) do
    append(gone, move.from, move.id)
    append(moved, move.to or listed_gpu_set(prefix, move.demand), move.score, move.id)
    wake = wake or move.to == suspects or fits ~= '' and move.to == ready
    wake_gpu = wake_gpu or move.demand
  end
  for _, claim in ipairs(claims) do append(gone, claim.from, claim.id) end
  remove_all(gone)
  add_all(moved)
  if #claims > 0 then
    local expiry, held_by = whole(now + lease_ms), stamp .. ' ' .. worker
    local leased, ids, fitting = {}, {}, {}
    for n, claim in ipairs(claims) do
      claim.token = token + n
      local holder = claim.device and held_by .. '\n' .. claim.device or held_by
      redis.call('HSET', tasks .. claim.id, 's', 'processing', 't', whole(claim.token), 'n', claim.attempt, 'y', holder)
      leased[2 * n - 1], leased[2 * n], ids[n], fitting[n] = expiry, claim.id, claim.id, claim.fit
    end
    redis.call('HSET', meta, 'token', whole(token + #claims))
    redis.call('ZADD', leases, unpack(leased))
    redis.call('HSET', request, 'id', request_id, 'claims', table.concat(ids, '\n'), 'first_token', whole(token + 1))
    if fits ~= '' then redis.call('HSET', request, 'fits', table.concat(fitting, ' ')) end
    redis.call('PEXPIRE', request, whole(2 * lease_ms))
  end
end

-- An entry that was dropped took the place of a task that may be there.
local hit = wanted > 0 and fits == '' and not paused and (#claims >= wanted or dropped_entries)
if hit then wake = wake or redis.call('ZCARD', ready) > 0 end
local rows, fitted, took_suspect = {}, {}, false
if is_watched then
  for _, claim in ipairs(claims) do changed[#changed + 1] = claim.id end
  publish_changed(prefix, watched, changed)
end
for n, claim in ipairs(claims) do
  local task, r = claim.task, 7 * n
  rows[r - 6], rows[r - 5], rows[r - 4] = claim.id, claim.token, claim.attempt
  rows[r - 3], rows[r - 2], rows[r - 1], rows[r] = task[CREATION], task[OVERRIDES], task[COUNTS], task[DUE]
  took_suspect = took_suspect or claim.from == suspects
  if claim.fit then
    fitted[2 * n - 1], fitted[2 * n] = claim.fit, redis.call('HGET', tasks .. claim.id, 'q') or ''
  end
end
-- This worker takes no further suspect until this one has ended; another may.
if took_suspect then wake = wake or redis.call('ZCARD', suspects) > 0 end
if wake and not paused then redis.call('ZADD', marker, 0, '0') end
if wake_gpu and not paused then redis.call('ZADD', prefix .. 'gpu_marker', 0, '0') end
if fits ~= '' then unlist_empty_gpu_sets(prefix) end
local next_due = not paused and redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')[2]
local answers = {}
for n, item in ipairs(items) do answers[n] = item.answer end
return { stamp, answers, rows, next_due and whole(math.max(0, math.ceil(next_due - now))) or '-1', hit and 1 or 0, fitted }
