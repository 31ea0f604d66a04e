-- The ledger of one device: a hash, shared by all workers of all queues that use it.
-- r:<id>  a reservation: "expiry_ms MiB state start_until_ms owner worker queue task"; `owner` is "<pid namespace>:<pid>" of the
--         process that uses the memory, or '-'. State: running, idle (a warm child without a task), ending (to be given back).
-- u:<id>  memory that its worker saw that process use, for workers in other containers, which do not see it: "expiry_ms MiB"
-- hold    "expiry_ms MiB holder": no other task starts here, so that the holder's task gets room
-- need    "expiry_ms MiB": a task needs that much, and workers end idle children
-- shut    "until_ms reason": the device is in quarantine; after that, one task at a time may start, and one success ends it
-- trial   the reservation of the task that tries the device then
-- shut:<queue> trial:<queue>  the same for the tasks of one queue
-- faults:<queue>  its last tasks, one a line, that failed here with a GPU fault, with no success in between
-- clock   "seen_ms ahead_ms": the time of the last write, and how far the ledger's clock is ahead of the server's

-- The ledger's clock never runs backwards, like a queue's: see _time.lua. Returns also how far it is ahead, and whether
-- the server's clock was set back since the last write. The clock then stands still until begin_writing notes it.
local function ledger_time(given, stored)
  local time, seen, ahead = clock(given), string.match(stored or '', '^(%d+) (%d+)$')
  seen, ahead = tonumber(seen or 0), tonumber(ahead or 0)
  local is_back = seen - ahead - time > 1000
  if is_back then ahead = seen - math.floor(time) end
  return math.max(time + ahead, seen), ahead, is_back
end

-- The ledger of an unused device expires, after its quarantine at the earliest: a person may have set that for years.
local KEPT_S = 86400

local function until_of(value) return tonumber(string.match(value, '^%d+')) end

-- Tries each command that a script writes with, and notes the time. A server whose memory is full does not refuse the
-- first command, and none after it: the ledger must keep running tasks.
local function begin_writing(ledger, now, ahead)
  redis.call('HDEL', ledger, '')
  local shut = redis.call('HGET', ledger, 'shut')
  local keep_s = KEPT_S + math.max(0, math.ceil(((shut and until_of(shut) or 0) - now) / 1000))
  local is_there = redis.call('EXPIRE', ledger, keep_s) == 1
  redis.call('HSET', ledger, 'clock', whole(now) .. ' ' .. whole(ahead))
  if not is_there then redis.call('EXPIRE', ledger, keep_s) end
end

local function fields_in(ledger)
  local flat, fields = redis.call('HGETALL', ledger), {}
  for n = 1, #flat, 2 do fields[flat[n]] = flat[n + 1] end
  return fields
end

local function reservation(value)
  local expiry, mib, state, start_until, owner, worker = string.match(value, '^(%d+) (%d+) (%a+) (%d+) (%S+) (%S+)')
  return {
    expiry = tonumber(expiry), mib = tonumber(mib), state = state, start_until = tonumber(start_until), owner = owner,
    worker = worker,
  }
end
