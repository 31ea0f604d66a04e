--[[ Read what tasks have emitted after a part, and whether they go on.
KEYS: watched meta
ARGV: now prefix watch_ms limit | per task: what id after
Returns: now, and per task false, or: state, attempt, restart, more, overrides, items
`what` is 'parts' or 'log'. `after` is the id of the last part or line that the reader has, '' for none, or 'last <n>' for the last n.
`restart` is '' or an id: what the reader has is void, the stream begins anew behind this id. `more` is 1 if there is more already.
`overrides` are those of a pending task with a deadline, else ''. An item is three values: id, form with attempt, text.
The reply ends with the task that fills it: limit is in bytes. The changes of the tasks are published for watch_ms.
]]
--#include _clock
--#include _time
--#include _time_of
--#include _parts
--#include _watch
local watched, prefix, watch_ms, room = KEYS[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local AT_ONCE, ONE_TASK = 50, 65536  -- items of one read, and bytes of one task

-- The items after an id, or from the first one on, as three values each; and whether there are more.
local function items_after(key, after)
  local items, size, from = {}, 0, after == '' and '-' or '(' .. after
  repeat
    local page = redis.call('XRANGE', key, from, '+', 'COUNT', AT_ONCE)
    for n, entry in ipairs(page) do
      local form, text = entry[2][1], entry[2][2]
      items[#items + 1], items[#items + 2], items[#items + 3] = entry[1], form, text
      size = size + #text
      if size >= ONE_TASK then return items, n < #page and 1 or #page == AT_ONCE and 1 or 0, size end
    end
    from = #page > 0 and '(' .. page[#page][1]
  until #page < AT_ONCE
  return items, 0, size
end

local function last_items(key, count)
  local items, size, page = {}, 0, redis.call('XREVRANGE', key, '+', '-', 'COUNT', count)
  for n = #page, 1, -1 do
    items[#items + 1], items[#items + 2], items[#items + 3] = page[n][1], page[n][2][1], page[n][2][2]
    size = size + #page[n][2][2]
  end
  return items, 0, size
end

-- The parts after the one that a reader has; whether there are more; their size; and where the stream begins anew if what the
-- reader has is void. The stream itself is void if its task has ended, and the last attempt has neither emitted nor kept anything.
local function parts_after(key, task, after)
  local state, last, owner, base = task[1], task[2] or '0', owner_and_base(task[3])
  local has_ended = state == 'completed' or state == 'failed' or state == 'cancelled'
  local token, place = string.match(after, '^(%d+)-(%d+)$')
  place = tonumber(place or 0)
  if owner == '0' or has_ended and last ~= owner then
    return {}, 0, 0, place > 0 and string.format('%s-0', last) or ''
  end
  if place == 0 or tonumber(token) >= tonumber(base) then
    local items, more, size = items_after(key, after)
    local is_gap = items[1] and tonumber(string.match(items[1], '%d+$')) ~= place + 1
    -- The server has lost parts that the reader has got, and has others in their places, or none.
    if not items[1] and has_ended then is_gap = redis.call('XLEN', key) ~= place end
    if place == 0 or not is_gap then return items, more, size, '' end
  end
  local items, more, size = items_after(key, '')
  return items, more, size, string.format('%s-0', base)
end

local rows, found = {}, {}
for i = 5, #ARGV, 3 do
  local what, id, after = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local key = prefix .. 't:' .. id
  local task = redis.call('HMGET', key, 's', 't', 'b', 'n')
  local is_there = task[1] or redis.call('HEXISTS', key, 'p') == 1
  local row = false
  if is_there then
    local state, items, more, size, restart = task[1] or 'pending', {}, 0, 0, ''
    local count = string.match(after, '^last (%d+)$')
    if what == 'parts' then items, more, size, restart = parts_after(stream_key(prefix, id), task, after)
    elseif not task[3] then items = {}  -- the task has logged nothing
    elseif count then items, more, size = last_items(log_key(prefix, id), count)
    else items, more, size = items_after(log_key(prefix, id), after) end
    local overrides = state == 'pending' and redis.call('HGET', key, 'o') or ''
    if string.sub(overrides, 1, 7) ~= '{"@by":' then overrides = '' end
    row = { state, task[4] or '0', restart, more, overrides, items }
    room = room - size
    found[#found + 1] = id
  end
  rows[#rows + 1] = row
  if room <= 0 then break end
end
local state = redis.call('HMGET', KEYS[2], 'ahead', 'reaped_at')
local now = queue_time(clock(ARGV[1]), state[1], state[2])
if watch_ms > 0 and #found > 0 then watch(watched, found, now, watch_ms) end
return { reply_time(now, state[1]), rows }
