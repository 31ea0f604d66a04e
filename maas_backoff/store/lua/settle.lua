--[[ Settle attempts, and claim due tasks for the slots they free. The only script that changes an existing task's state.
KEYS: scheduled leases external completed failed cancelled meta watched totals request
ARGV: now prefix settle_id worker lease_ms request_id claims suspicion max_finished fits tally kinds used breakdown groups | per group: precondition status delay_ms ttl_s tally n count, and per settle of it: id token, n times: field value
Returns: now, answers, claims, ms to the next due task or -1, 1 if the claim hit its count, and per claim on a fit: its number and what the task needs; or ranks
Preconditions: `lease` (the task runs under this token; `lease <n>`: and its stream has n parts of this attempt), `expired` (the same, and its lease has run out), `pending`, `external`, `finished`; an empty token means any.
Answers: 'ok'; 'cancelled' when a requested cancel took the place of a comeback, also to a repeated request; 'already'; 'lost'; 'unsent' (parts of the stream are missing); 'unknown'; or the state that stood against it.
`fits` is '' or, for each claim, a line "demand device" (a placement): only tasks that wait for a GPU are claimed then, as many of each demand as it has lines.
`kinds` are those of the worker, separated by spaces; '-' is the nameless kind. Tasks of other kinds, and of paused ones, are not claimed. After a '~' come kinds that are not claimed, whose first ranks are returned: see _batch.lua.
`used` has lines about settles, which count if the settle is accepted: "u <number> <lane> <costs>" (costs to add to those that were charged), "c <number> <limit> <ms>" (the task closes the limit).
`claims` of a batch is "size wait_ms cost": see _batch.lua. Either a whole batch of the one kind is claimed, or nothing.
A claim is seven values: id token attempt creation overrides counts due; `counts` of a task that has come back has more lines: its suspicion, or an empty one, then its last error and its failed attempts, if there are any. The same request_id gets the same claims again. A paused queue gives none.
`tally` is lines "name number" for the history. They are counted once: by the first of equal calls that settles a task. The `tally` of a group is names, counted for each accepted settle of the group. The first name, of a comeback, is counted only if the task comes back.
`breakdown` has lines for the history by kind and by tenant: see _breakdown.lua. A settle counts if it is accepted.
An operation has the request_id 'call', and its own `request`: a repeated call gets the same answers for lease_ms. A due time "at <ms>" is by the clock of users.
Reads everything first, and tries each command that it will write with. The first of these is a ZREM: a server whose memory is full refuses nothing here.
]]
--#include _lone_settle
--#include _clock
--#include _time
--#include _call
--#include _queue
--#include _task
--#include _deadlines
--#include _settle
--#include _suspects
--#include _overdue
--#include _claim
--#include _parts
--#include _lanes
--#include _limits
--#include _turns
--#include _batch
--#include _history
--#include _breakdown
--#include _watched
local scheduled, leases, external = KEYS[1], KEYS[2], KEYS[3]
local finished = { completed = KEYS[4], failed = KEYS[5], cancelled = KEYS[6] }
local meta, watched, totals, request = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local prefix, settle_id, worker, lease_ms = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local request_id, wanted, suspicion, batch = ARGV[6], tonumber(ARGV[7]), ARGV[8], nil
if not wanted then
  batch = new_batch(ARGV[7], prefix, ARGV[12])
  wanted = batch.size
end
local max_finished, fits, tally, groups = tonumber(ARGV[9]), ARGV[10], ARGV[11], tonumber(ARGV[15])
local tasks, never, deadlines = prefix .. 't:', prefix .. 'never', prefix .. 'deadlines'

local state = redis.call('HMGET', meta, 'paused', 'token', 'ahead', 'reaped_at', 'lanes', 'turn')
local paused, ahead = state[1], state[3] and tonumber(state[3]) or 0
local now = queue_time(clock(ARGV[1]), ahead, state[4])
local stamp = whole(now)
-- The last token: never below the clock in microseconds. A server that has lost its newest data, or all data, gives no
-- token a second time, if its clock is not behind the clock before the loss.
local token = math.max(tonumber(state[2] or 0) or 0, math.floor(now * 1000))
local unused = token

local is_operation = request_id == 'call'
local stored_answer = is_operation and answered_before(request)
if stored_answer then
  local answers = {}
  for word in string.gmatch(stored_answer, '%S+') do answers[#answers + 1] = word end
  return { stamp, answers, {}, '-1', 0, {} }
end

-- Without tenants and limits, none of this is used.
local turn = state[6]
local has_lanes = state[5] and is_fair_still(prefix)
local lanes, limits, turns = false, false, false
local function in_lanes()
  lanes = lanes or new_lanes(prefix, turn)
  return lanes
end

-- Read: the tasks to settle.
local items = judge_all(16, groups, now, tasks, settle_id, leases)
local is_fair = has_lanes or ARGV[13] ~= ''
if is_fair and (state[5] == '2' or ARGV[13] ~= '') then
  limits = new_limits(prefix, now, turn)
  limits.settle(items)
end
-- Read: the tasks to claim, with the due ones of `scheduled` by rank among the ready ones.
local is_cut = false  -- whether the next claim may find more
local bases, closed, claims, moves, orphans, replayed, from, to = {}, {}, {}, {}, {}, false, {}, {}
if is_fair then turns = new_turns(prefix, turn, in_lanes(), limits, orphans, from, to) end
if ARGV[13] ~= '' then correct_costs(ARGV[13], items, limits, turns) end
if wanted > 0 then
  bases, closed = open_bases_of(prefix, ARGV[12])
  local last = redis.call('HMGET', request, 'id', 'claims', 'first_token', 'fits')
  if last[1] == request_id then
    replayed = true
    claims = replay(last[2], last[3], last[4], tasks)
  elseif not paused then
    local candidates, ours = {}, {}
    for _, base in ipairs(bases) do ours[base] = true end
    claimed_at = now
    local due = redis.call('ZRANGEBYSCORE', scheduled, '-inf', now, 'WITHSCORES', 'LIMIT', 0, math.max(2 * wanted, 100))
    for d = 1, #due, 2 do
      local id, task = due[d], read_task(tasks .. due[d])
      if not task then
        drop_entry(orphans, scheduled, id, task)
      else
        local head_start, demand, kind, lane = terms_of(task[CREATION])
        local score, base = rank(tonumber(due[d + 1]), head_start), base_of(prefix, kind)
        local move = { id = id, score = score, from = scheduled, kind = kind, base = base, task = task }
        if lane ~= '' and not is_suspect(task[COUNTS]) then move.lane, is_cut = lane, true end
        if demand ~= '-' then
          move.demand = demand_of(redis.call('HGET', tasks .. id, 'q'), task[CREATION])
          moves[#moves + 1] = move
        elseif move.lane then
          move.to = base .. 'ready'
          moves[#moves + 1] = move
        elseif is_suspect(task[COUNTS]) then
          move.to = base .. 'suspects'
          moves[#moves + 1] = move
        else
          move.to = base .. 'ready'
          -- Claimed here, or by the next claim, which `hit` announces.
          move.claimable = fits == '' and ours[base]
          local list = move.claimable and candidates or moves
          list[#list + 1] = move
        end
      end
    end
    local function claim(id, from, task)
      task = task or read_task(tasks .. id)
      if task then
        claims[#claims + 1] = { id = id, from = from, task = task, token = 0, attempt = (task[ATTEMPT] or 0) + 1 }
      else
        drop_entry(orphans, from, id, task)
      end
    end
    if limits then limits.rouse() end
    if fits ~= '' then
      claims = claims_on_fits(fits, prefix, closed, tasks, suspicion_of(suspicion), orphans, turns, batch)
    elseif batch then
      for _, move in ipairs(candidates) do
        move.claimable, is_cut = false, true
        moves[#moves + 1] = move
      end
      if bases[1] then
        claims = batch.claims(suspicion, now, turn, turns, limits, orphans)
        is_cut = is_cut or batch.is_cut
      end
    else
      claims = claims_of_suspects(suspicion, bases, wanted, tasks, orphans, turns and turns.pay)
      if turns then
        local indexes = {}
        for n, base in ipairs(bases) do indexes[n] = base .. 'ready' end
        for _, move in ipairs(candidates) do
          move.claimable, is_cut = false, true
          moves[#moves + 1] = move
        end
        if #claims < wanted then turns.take(indexes, wanted - #claims, claims) end
      elseif #candidates == 0 and #bases == 1 then
        -- Without scores: the server takes longer to write the scores than to find the tasks.
        local ready = bases[1] .. 'ready'
        for _, id in ipairs(redis.call('ZRANGE', ready, 0, wanted - 1)) do
          if #claims < wanted then claim(id, ready) end
        end
      else
        for _, base in ipairs(bases) do
          local ready = base .. 'ready'
          local heads = redis.call('ZRANGE', ready, 0, wanted - 1, 'WITHSCORES')
          for h = 1, #heads, 2 do
            candidates[#candidates + 1] = { id = heads[h], score = tonumber(heads[h + 1]), from = ready }
          end
        end
        table.sort(candidates, function(a, b) return a.score < b.score end)
        for _, candidate in ipairs(candidates) do
          if #claims < wanted then
            claim(candidate.id, candidate.from, candidate.task)
          elseif candidate.from == scheduled then
            moves[#moves + 1] = candidate
          end
        end
      end
    end
  end
end

if turns then turns.plan() end

-- Count: the tasks that are settled, with those that the claim met too late.
local asked, has_settled = #items, false
if #overdue > 0 then add_overdue(items, tasks, now) end
local adding, dropped, tallied, changed, note_breakdown = {}, {}, {}, {}, ARGV[14] ~= ''
for n, item in ipairs(items) do
  if item.accepted then
    changed[#changed + 1] = item.id
    has_settled = has_settled or n <= asked
    if finished[item.status] then adding[item.status] = (adding[item.status] or 0) + 1 end
    local tally = item.tally
    if item.answer == 'cancelled' then tally = string.gsub(tally, '^[^ ]+', '') end
    if item.ended then tally, note_breakdown = tally .. ' expired', true end
    if tally ~= '' then tallied[tally] = (tallied[tally] or 0) + 1 end
  elseif item.kind == 'overdue' and (item.was ~= 'pending' or not item.created) then
    -- An older release has taken the task, or deleted it. A pending task has a new deadline.
    append(from, deadlines, item.id)
  end
end
for status, count in pairs(adding) do
  dropped[status] = overflow(finished[status], count, max_finished, tasks, status, from, now)
end

note_breakdown = note_breakdown and breakdown_of(items, ARGV[14])

local dropped_entries = next(orphans) ~= nil
local is_watched = #items + #claims > 0 and redis.call('EXISTS', watched) == 1

-- Plan: the indexes of the settled tasks.
local wake, wake_gpu, new_names, all_pending, comes_back, retaken, drops = {}, {}, {}, nil, false, false, false
local head_due, head_kind = nil, nil
for _, item in ipairs(items) do
  if item.accepted then
    local id, was, status = item.id, item.was, item.status
    if was == 'processing' then append(from, leases, id)
    elseif was == 'pending' then
      append(from, deadlines, id)
      local key, index = false, nil
      local _, _, _, lane = terms_of(item.created)
      if lane ~= '' then
        in_lanes().count(lane, -1)
        if not item.is_dropped then key, index = lanes.find(id, item.created) end
      end
      if key then
        append(from, key, id)
        lanes.remove(index, lane)
      elseif not item.is_dropped then
        all_pending = all_pending or pending_indexes(prefix, scheduled)
        for _, index in ipairs(all_pending) do append(from, index, id) end
      end
    elseif was == 'external' then append(from, external, id)
    else
      append(from, finished[was], id)
    end
    if item.kind == 'finished' then
      retaken, item.suspect = true, false
      drops = drops or item.emitted
    end
    if status == 'pending' then
      local due, raised, created = now + item.delay, item.demand, item.created
      for f = item.first, item.last, 2 do
        local name, value = ARGV[f], ARGV[f + 1]
        if name == 'k' then item.suspect = is_suspect(value)
        elseif name == 'q' then raised = value
        elseif name == 'u' then
          local at = string.match(value, '^at (.+)$')
          due = at and at + ahead or tonumber(value)
          ARGV[f + 1] = whole(due)
        elseif name == 'p' then created = value end
      end
      comes_back, item.delay = true, whole(due)
      if item.overrides then
        if item.kind == 'finished' then item.overrides = with_deadlines_from(due, item.overrides) end
        local expiry = expiry_of(item.overrides)
        if expiry then append(to, deadlines, whole(expiry), id) else item.overrides = false end
      end
      local head_start, demand, kind, lane = terms_of(created)
      local base = base_of(prefix, kind)
      if lane ~= '' then in_lanes().count(lane, 1) end
      if item.suspect then lane = '' end
      if due > now then
        if not head_due then head_due, head_kind = head_of(prefix, scheduled) end
        append(to, scheduled, string.format('%.4f', due), id)
        if due < head_due or kind ~= head_kind then wake[base] = true end
      elseif demand ~= '-' then
        local set = gpu_set_for(prefix, kind, demand_of(raised, created), new_names)
        local score = rank(due, head_start)
        append(to, lane ~= '' and lanes.enter(set, lane, score, 1) or set, score, id)
        wake_gpu[base] = true
      else
        local index, score = item.suspect and base .. 'suspects' or base .. 'ready', rank(due, head_start)
        append(to, lane ~= '' and lanes.enter(index, lane, score, 1) or index, score, id)
        wake[base] = true
      end
    elseif status == 'external' then
      token = token + 1
      item.given = whole(token)
      append(to, external, stamp, id)
    else
      append(to, finished[status], item.expiry, id)
    end
  end
end
for status, ids in pairs(dropped) do
  drops = drops or #ids > 0
  for _, id in ipairs(ids) do append(from, finished[status], id) end
end

-- Plan: the indexes of the claimed tasks.
local ids, fitting, leased = {}, {}, {}
if not replayed then
  for index, orphaned in pairs(orphans) do
    for _, id in ipairs(orphaned) do append(from, index, id) end
  end
  for _, move in ipairs(moves) do
    append(from, move.from, move.id)
    local index = move.to or gpu_set_for(prefix, move.kind, move.demand, new_names)
    if move.lane then index = in_lanes().enter(index, move.lane, move.score, 1) end
    append(to, index, move.score, move.id)
    if move.demand then wake_gpu[move.base] = true
    elseif not move.claimable then wake[move.base] = true end
  end
  local expiry = whole(now + lease_ms)
  for n, claim in ipairs(claims) do
    claim.token = token + n
    append(from, claim.from, claim.id)
    if claim.task[OVERRIDES] then unlist_deadline(claim.id, claim.task[OVERRIDES], from, deadlines) end
    leased[2 * n - 1], leased[2 * n], ids[n], fitting[n] = expiry, claim.id, claim.id, claim.fit
  end
  if #claims > 0 then to[leases] = leased end
end
if fits ~= '' then
  for _, claim in ipairs(claims) do claim.raised = redis.call('HGET', tasks .. claim.id, 'q') or '' end
end

local minute, request_s, is_kept = prefix .. 'h:' .. math.floor(now / 60000), math.ceil(2 * lease_ms / 1000), false
if is_operation or lanes or fits ~= '' or next(from) then
  -- Try: every later command of this script is called before the first real write, as a read or without a change. Every
  -- index was read, or is tried here. A missing right, or a key of another type, therefore refuses the whole call: a
  -- user's rights do not change while a script runs. The key `never` does not exist. While a Cluster moves the queue, key
  -- by key, it refuses every missing key. An index that gets empty half-way would be one: the Cluster refuses `never` first.
  redis.call('ZREM', leases, '')
  redis.call('ZADD', never, 'XX', 0, '')
  if lanes then try_lanes(prefix, meta, limits) end
  is_kept = redis.call('EXPIRE', #changed > 0 and minute or request, #changed > 0 and KEPT_S or request_s) == 1
  local is_any = is_operation or from[deadlines]
  if is_any or comes_back or #moves > 0 then
    for index in pairs(is_any and from or {}) do redis.call('ZCARD', index) end
    for index in pairs(to) do
      if index ~= scheduled and index ~= leases then redis.call('ZCARD', index) end
    end
  end
  if wanted == 0 or replayed or paused then redis.call('ZRANGE', scheduled, 0, 0) end
  if comes_back or fits ~= '' then redis.call('HDEL', never, '') end
  if fits ~= '' then redis.call('HKEYS', prefix .. 'demands') redis.call('ZCARD', never) end
  if retaken then redis.call('PERSIST', never) end
  if drops then redis.call('UNLINK', never) end
  if note_breakdown then redis.call('HLEN', never) redis.call('HGETALL', never) redis.call('HDEL', never, '') end
  -- HINCRBY and HSET write at each call. The counts come first, and are taken back if the server refuses the first HSET,
  -- which only uses up tokens.
  local refusal, counted = false, {}
  for status, count in pairs(adding) do
    local answer = redis.pcall('HINCRBY', meta, status, count)
    if type(answer) == 'table' then refusal = answer.err else counted[status] = count end
  end
  if next(tallied) and not next(adding) then redis.call('HINCRBY', meta, 'completed', 0) end
  if not refusal and #changed + #claims > 0 then
    local last = replayed and token or token + #claims
    local answer = redis.pcall('HSET', meta, 'token', last == unused and (state[2] or '0') or last)
    refusal = type(answer) == 'table' and answer.err
  end
  if refusal then
    for status, count in pairs(counted) do redis.call('HINCRBY', meta, status, -count) end
    error(refusal, 0)
  end
end

-- Write: the settled tasks.
local requeued = 0
for _, item in ipairs(items) do
  if item.accepted then
    -- For a task that is marked processing, `given` is the new token: a repeated call is answered "already".
    local key, status, mark = item.key, item.status, item.given .. ':' .. settle_id
    if item.kind == 'finished' then
      if item.was ~= 'pending' then requeued = requeued + 1 end  -- an overdue task was not counted as cancelled yet
      redis.call('PERSIST', key)
      redis.call('HDEL', key, 'x', 'f', 'r', 'e', 'g', 'm', 'w')
      if item.emitted then forget_stream(prefix, item.id, item.emitted) end
      if item.overrides then redis.call('HSET', key, 'o', item.overrides) end
    end
    if status == 'pending' then
      redis.call('HSET', key, 's', status, 'd', mark, 'u', item.delay, unpack(ARGV, item.first, item.last))
      -- The progress of an attempt ends with it.
      redis.call('HDEL', key, 'g', 'm')
    elseif status == 'external' then
      redis.call('HSET', key, 's', status, 'd', mark, 't', item.given, 'y', stamp .. ' ', unpack(ARGV, item.first, item.last))
    else
      redis.call('HSET', key, 's', status, 'd', mark, 'f', stamp, unpack(ARGV, item.first, item.last))
      if item.ended then redis.call('HSET', key, 'f', item.ended, 'w', 'expired') end
      redis.call('EXPIRE', key, item.ttl)
      if item.emitted then expire_emitted(prefix, item.id, item.ttl) end
    end
  end
end

if requeued > 0 then redis.pcall('HINCRBY', meta, 'requeued', requeued) end

-- Write: the claimed tasks.
if not replayed and #claims > 0 then
  local held_by = stamp .. ' ' .. worker
  for _, claim in ipairs(claims) do
    local holder = claim.device and held_by .. '\n' .. claim.device or held_by
    redis.call('HSET', tasks .. claim.id, 's', 'processing', 't', claim.token, 'n', claim.attempt, 'y', holder)
  end
  local claimed, on = table.concat(ids, '\n'), table.concat(fitting, ' ')
  redis.call('HSET', request, 'id', request_id, 'claims', claimed, 'first_token', token + 1, 'fits', on)
  if #changed > 0 or not is_kept then redis.call('EXPIRE', request, request_s) end
end

-- Write: the indexes.
list_gpu_sets(prefix, new_names)
if turns then turns.write(meta) end
remove_all(from)
add_all(to)
if lanes then lanes.write(meta, state[5]) end
if limits then limits.write(wake, wake_gpu, #claims >= wanted) end
if state[5] and not has_lanes and not lanes then
  redis.call('HDEL', meta, 'lanes', 'turn')
  redis.call('ZREMRANGEBYSCORE', prefix .. 'virtual', '-inf', '+inf')
  end_turns(prefix)
end
for status, gone in pairs(dropped) do
  for _, id in ipairs(gone) do
    if gone.theirs[id] then unlink_task(prefix, id, gone.emitted[id]) end
  end
end
if #changed > 0 then
  if not is_kept then begin_steps(prefix, totals, meta, now, adding) end
  note_history(prefix, minute, totals, now, has_settled and tally or '', tallied, adding)
  if not is_kept then redis.call('EXPIRE', minute, KEPT_S) end
end
if note_breakdown then note_breakdown(prefix, now) end

-- A dropped entry took the place of another task, which may exist.
is_cut = is_cut or turns and turns.is_cut
local hit = wanted > 0 and not paused and (dropped_entries or is_cut or fits == '' and #claims >= wanted)
for _, base in ipairs(hit and bases or {}) do
  if not wake[base] then wake[base] = redis.call('ZRANGE', base .. 'ready', 0, 0)[1] and true end
  if turns and not wake[base] then wake[base] = redis.call('ZRANGE', turns_key(base .. 'ready'), 0, 0)[1] and true end
end
local rows, fitted, took_suspect = {}, {}, false
if is_watched then
  for _, claim in ipairs(claims) do changed[#changed + 1] = claim.id end
  publish_changed(prefix, watched, changed)
end
for n, claim in ipairs(claims) do
  local task, r = claim.task, 7 * n
  rows[r - 6], rows[r - 5], rows[r - 4] = claim.id, claim.token, claim.attempt
  rows[r - 3], rows[r - 2], rows[r - 1], rows[r] = task[CREATION], task[OVERRIDES], task[COUNTS], task[DUE]
  if task[COUNTS] or claim.attempt > 1 then rows[r - 1] = with_failures(task[COUNTS], task.suspicion, tasks .. claim.id) end
  took_suspect = took_suspect or claim.is_suspect
  if claim.fit then fitted[2 * n - 1], fitted[2 * n] = claim.fit, claim.raised end
end
-- This worker takes suspects of no other cohort until these have ended. Another worker may.
for _, base in ipairs(took_suspect and bases or {}) do
  if not wake[base] then wake[base] = redis.call('ZRANGE', base .. 'suspects', 0, 0)[1] and true end
end
if not paused then wake_bases(wake, wake_gpu, closed) end
if fits ~= '' then unlist_empty_gpu_sets(prefix) end
if batch and fits == '' then batch.note(now) end
if fits == '' and wanted > 0 and string.find(ARGV[12], '~', 1, true) then fitted = first_ranks(prefix, ARGV[12]) end
local next_due = not paused and redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')[2]
if batch and batch.wait_ms > 0 then next_due = math.min(tonumber(next_due or math.huge), now + batch.wait_ms) end
if limits and not paused then next_due = limits.earlier_of(next_due) end
local answers = {}
for n = 1, asked do answers[n] = items[n].answer end
if is_operation then keep_answer(request, table.concat(answers, ' '), math.ceil(lease_ms / 1000)) end
if ahead > 0 then stamp = stamp .. ' ' .. whole(ahead) end
return { stamp, answers, rows, next_due and whole(math.max(0, math.ceil(next_due - now))) or '-1', hit and 1 or 0, fitted }
