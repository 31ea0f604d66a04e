--[[ Reserve a device's memory for a task, if there is room: its free memory, less reserved memory that is not used yet.
KEYS: ledger
ARGV: now id mib free limit lease_ms settle_ms holder owner rest | per process that uses the device: owner used
Returns: 'ok', or the obstacle: 'room', 'busy', 'starting', 'held', 'shut'
`free` and `used` are of one GPU sample, in MiB. An existing reservation of the id is changed to the new size, and the memory that its
process uses counts as free. A smaller size of an existing reservation is never refused for lack of room, nor one that its process uses already. `limit` is the most tasks at once; 0: any number; -1: no other reservation; -2: no other worker. For `settle_ms`,
no other task may start here, unless the task's memory shows before; 0: nothing starts. `rest` is "worker queue task". An empty `holder`: the task has begun, and its reservation has lapsed.
]]
--#include _clock
--#include _ledger
local ledger = KEYS[1]
local id, mib, free, limit = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local lease_ms, settle_ms, holder = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local owner, rest = ARGV[9], ARGV[10]

local used = {}
for n = 11, #ARGV, 2 do used[ARGV[n]] = tonumber(ARGV[n + 1]) end

local fields = fields_in(ledger)
local now, ahead, is_back = ledger_time(ARGV[1], fields.clock)
if is_back then begin_writing(ledger, now, ahead) end
local worker = string.match(rest, '^%S+')
local room, mine, running, others, starting, expired = free + (used[owner] or 0), -1, 0, false, false, {}
for name, value in pairs(fields) do
  if string.sub(name, 1, 2) == 'r:' then
    local other = reservation(value)
    if other.expiry < now then
      expired[#expired + 1] = name
      expired[#expired + 1] = 'u' .. string.sub(name, 2)
    elseif name == 'r:' .. id then
      mine = math.max(other.mib, used[owner] or 0)
    else
      local seen = used[other.owner] or 0
      room = room - math.max(0, other.mib - seen)
      if other.state == 'running' then running = running + 1 end
      others = others or limit == -1 or limit == -2 and other.worker ~= worker
      starting = starting or now < other.start_until and (other.mib == 0 or seen < 0.5 * other.mib)
    end
  end
end

local hold = fields.hold
local held = hold and until_of(hold) > now and string.match(hold, '^%d+ %d+ (.*)$')
-- A lapsed reservation of a running task is renewed: holds and quarantines are for tasks that have not begun.
local begins = holder ~= ''
local of_queue, tries = ':' .. string.match(rest, '^%S+ (%S+)'), {}
for _, of in ipairs({ '', of_queue }) do
  local shut, trial = fields['shut' .. of], fields['trial' .. of] or ''
  trial = trial ~= id and fields['r:' .. trial]  -- its own: this call is repeated, as its reply was lost
  trial = trial and reservation(trial)
  if begins and shut and (until_of(shut) > now or trial and trial.expiry >= now and trial.state == 'running') then return 'shut' end
  if begins and shut then tries[#tries + 1] = of end
end
if begins and held and held ~= holder then return 'held' end
if others or limit > 0 and running >= limit then return 'busy' end
if settle_ms > 0 and starting then return 'starting' end
if mib > room and mib > mine then return 'room' end

begin_writing(ledger, now, ahead)
if #expired > 0 then redis.call('HDEL', ledger, unpack(expired)) end
if begins and held then redis.call('HDEL', ledger, 'hold') end
for _, of in ipairs(tries) do redis.call('HSET', ledger, 'trial' .. of, id) end
local start_until = settle_ms > 0 and now + settle_ms or 0
redis.call('HSET', ledger, 'r:' .. id, table.concat({ whole(now + lease_ms), mib, 'running', whole(start_until), owner, rest }, ' '))
return 'ok'
