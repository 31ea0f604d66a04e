--[[ Append what running tasks emit to their streams, and lines to their logs.
KEYS: meta watched
ARGV: prefix | per task: id token attempt continues place parts line lines; then per part its form and text, and per line its text
Returns: per task the length of its stream, or -1 if the task does not run under this token, or a person has changed its stream
`place` is that of the first part. Parts that are there already are left out, and parts behind a gap: the caller sends the missing ones.
The first parts of an attempt take the place of earlier ones, unless it `continues` them ('1'). An attempt may give that up.
The first write is an HDEL: a server whose memory is full does not refuse it. Then come the HSETs, which have no harmless form.
]]
--#include _task
--#include _parts
--#include _watched
local MOST_LINES = 1000  -- of a log; the oldest are dropped
local CARRIED = 1000  -- bytes of a part that is published, if it is the first one of a stream: its readers need no call then
local prefix, items, noted, firsts, anew, adds = ARGV[1], {}, {}, {}, false, false

-- A stream that a person has overwritten has no length: nil.
local function length_of(key)
  local length = redis.pcall('XLEN', key)
  if type(length) == 'number' then return length end
  if string.find(length.err, 'WRONGTYPE', 1, true) then return nil end
  error(length.err, 0)
end

-- Adds the parts of a task that are not there. A small first part is noted for its readers.
local function add_parts(item)
  local at, key, before = item.at, stream_key(prefix, item.id), item.length
  local token, attempt, parts = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 5])
  if item.is_anew then redis.call('UNLINK', key) end
  for n = item.skip + 1, parts do
    local number, form, text = token .. '-' .. item.length + 1, ARGV[at + 6 + 2 * n] .. attempt, ARGV[at + 7 + 2 * n]
    -- A person who has removed parts must not stop the streams of other tasks.
    local added = redis.pcall('XADD', key, number, form, text)
    item.length = type(added) == 'string' and item.length + 1 or -1
    if item.length < 0 then break end
    if parts == 1 and before == 0 and #text <= CARRIED then item.first = number .. '\n' .. form .. '\n' .. text end
  end
  if before == 0 and item.length > 0 then redis.call('EXPIRE', key, KEPT_LIVE_S) end
end

-- Adds the lines of a task. A repeated call is refused by the number of the line, and a key of another type by its type: nothing is
-- lost by that.
local function add_lines(item)
  local at, log = item.at, log_key(prefix, item.id)
  local token, attempt, parts, first = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  for n = 1, item.lines do
    local text = ARGV[at + 7 + 2 * parts + n]
    redis.pcall('XADD', log, 'MAXLEN', '~', MOST_LINES, token .. '-' .. first + n - 1, 'l' .. attempt, text)
  end
  if item.emitted then redis.pcall('EXPIRE', log, KEPT_LIVE_S) end
end

local i = 2
while ARGV[i] do
  local id, token, continues = ARGV[i], ARGV[i + 1], ARGV[i + 3] == '1'
  local parts, lines = tonumber(ARGV[i + 5]), tonumber(ARGV[i + 7])
  local task = fields_of(prefix .. 't:' .. id, 's', 't', 'b') or {}
  local item = { id = id, at = i, length = -1, skip = parts, lines = 0 }
  if task[1] == 'processing' and task[2] == token then
    local owner, base, log = owner_and_base(task[3])
    item.length, item.lines = 0, lines
    if parts > 0 or continues then
      item.is_anew = base ~= token and not (continues and owner ~= '0')
      if item.is_anew then base = token else item.length = length_of(stream_key(prefix, id)) end
      owner = token
    end
    if item.length then
      item.skip = math.max(item.length - ARGV[i + 4] + 1, 0)
      if item.length < ARGV[i + 4] - 1 then item.skip = parts end
      local emitted = owner .. ' ' .. base .. (lines > 0 and ' l' or log)
      if emitted ~= task[3] then item.emitted = emitted end
    else
      item.length, item.skip, item.lines = -1, parts, 0
    end
    anew = anew or item.emitted or item.length == 0 and parts > 0
    if item.skip < parts or item.lines > 0 then adds = true end
    if item.skip < parts or item.lines > 0 or item.emitted then noted[#noted + 1] = id end
  end
  items[#items + 1] = item
  i = i + 8 + 2 * parts + lines
end

local is_watched = #noted > 0 and redis.call('EXISTS', KEYS[2]) == 1
redis.call('HDEL', KEYS[1], '')
-- Try: no later command is refused. `never` is a key that never exists.
if anew then
  redis.call('UNLINK', prefix .. 'never')
  redis.call('EXPIRE', prefix .. 'never', 1)
end
if adds then redis.call('XADD', prefix .. 'never', 'NOMKSTREAM', '1-1', 't', '') end

for _, item in ipairs(items) do
  if item.emitted then redis.call('HSET', prefix .. 't:' .. item.id, 'b', item.emitted) end
end
for _, item in ipairs(items) do
  add_parts(item)
  if item.lines > 0 then add_lines(item) end
  if item.first then firsts[item.id] = item.first end
end
if is_watched then publish_emitted(prefix, KEYS[2], noted, firsts) end
local lengths = {}
for n, item in ipairs(items) do lengths[n] = item.length end
return lengths
