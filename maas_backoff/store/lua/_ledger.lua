-- The ledger of one device: a hash, shared by all workers of all queues that use it.
-- r:<id>  a reservation: "expiry_ms MiB state start_until_ms owner worker queue task"; `owner` is "<pid namespace>:<pid>" of the
--         process that uses the memory, or '-'. State: running, idle (a warm child without a task), ending (to be given back).
-- hold    "expiry_ms MiB holder": nothing else starts here, so that the holder's task finds room one day
-- need    "expiry_ms MiB": somebody wants that much: idle children are to go
-- shut    "until_ms reason": the device is in quarantine; after that, one task at a time is let in, and one success ends it
-- trial   the reservation of the task that tries it then
-- faults  the last tasks, one a line, that failed here as on a broken device, with no success in between

-- A first write that a full memory does not refuse; after it, none is refused: what runs is to be kept in the ledger.
local function begin_writing(ledger) redis.call('HDEL', ledger, '') end

-- A device that nobody uses any more is forgotten.
local KEPT_MS = 86400000

local function fields_in(ledger)
  local flat, fields = redis.call('HGETALL', ledger), {}
  for n = 1, #flat, 2 do fields[flat[n]] = flat[n + 1] end
  return fields
end

local function until_of(value) return tonumber(string.match(value, '^%d+')) end

local function reservation(value)
  local expiry, mib, state, start_until, owner = string.match(value, '^(%d+) (%d+) (%a+) (%d+) (%S+) ')
  return { expiry = tonumber(expiry), mib = tonumber(mib), state = state, start_until = tonumber(start_until), owner = owner }
end
