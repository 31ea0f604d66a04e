--[[ Read one page of the tasks in one state.
KEYS: meta | the indexes of the state
ARGV: now prefix limit index score skip reverse brief due_only
Returns: now, the tasks' ids and fields, index, score, skip, whether the queue is paused (1 or 0), names and times of the paused kinds, the paused ones among the tenants of the tasks, rows of their limits
The cursor is the next index (0: the end), the score reached there, and how many tasks of that score were read.
A score of "now+<ms>" is that time. A brief task has no params, result and failed attempts. `due_only`: in the last index, whose scores are times, only due tasks.
]]
--#include _clock
--#include _time
--#include _time_of
--#include _queue
--#include _paused
--#include _lanes
--#include _shares
local state = redis.call('HMGET', KEYS[1], 'ahead', 'reaped_at', 'paused', 'lanes')
local now, prefix, limit = queue_time(clock(ARGV[1]), state[1], state[2]), ARGV[2], tonumber(ARGV[3])
local index, score, skip = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local reverse, brief, due_only = ARGV[7] == '1', ARGV[8] == '1', ARGV[9] == '1'
local ahead = string.match(score, '^now%+(%d+)$')
if ahead then score = string.format('%.4f', now + ahead) end
local BRIEF = { 'p', 'o', 'q', 's', 't', 'n', 'k', 'c', 'u', 'y', 'f', 'g', 'm', 'e', 'w' }

local function read(key)
  if not brief then return redis.call('HGETALL', key) end
  local values, fields = redis.call('HMGET', key, unpack(BRIEF)), {}
  if values[1] then values[1] = string.match(values[1], '^[^\n]*\n?') end
  for n, name in ipairs(BRIEF) do
    if values[n] then fields[#fields + 1], fields[#fields + 2] = name, values[n] end
  end
  return fields
end

local function range(key)
  local page = { 'LIMIT', skip, limit, 'WITHSCORES' }
  local last = due_only and key == KEYS[#KEYS] and string.format('%.4f', now) or '+inf'
  if reverse then
    return redis.call('ZRANGE', key, score == '+inf' and last or score, '-inf', 'BYSCORE', 'REV', unpack(page))
  end
  return redis.call('ZRANGE', key, score, last, 'BYSCORE', unpack(page))
end

-- Notes the tenant and the limits of a pending task, whose reason to wait the caller will tell.
local shares = state[4] and new_shares(prefix)
local function note_lane(fields)
  local created, pending = '', true
  for n = 1, #fields, 2 do
    if fields[n] == 'p' then created = fields[n + 1] end
    if fields[n] == 's' then pending = fields[n + 1] == 'pending' end
  end
  local _, _, _, lane = terms_of(created)
  if pending and lane ~= '' then shares.add(lane) end
end

local tasks = {}
while limit > 0 and KEYS[index + 1] do
  local page = range(KEYS[index + 1])
  for i = 1, #page, 2 do
    -- A task past its time to live that is not trimmed yet: no fields.
    local fields = read(prefix .. 't:' .. page[i])
    tasks[#tasks + 1] = { page[i], fields }
    if shares then note_lane(fields) end
    skip = page[i + 1] == score and skip + 1 or 1
    score = page[i + 1]
  end
  limit = limit - #page / 2
  if limit > 0 then
    index, score, skip = index + 1, reverse and '+inf' or '-inf', 0
  end
end
if not KEYS[index + 1] then index = 0 end
local paused_tenants, limits = {}, {}
if shares then paused_tenants, limits = shares.read() end
return { reply_time(now, state[1]), tasks, index, score, skip, state[3] and 1 or 0, paused_kinds(prefix), paused_tenants, limits }
