-- A client that watches a task has put the id into `watched`. It reads the task again when the id is published.
-- After a tab come ids, with tabs between, of tasks that have emitted something.
-- After a line end come four lines: id of a task, and the first part of its stream: id, form with attempt, text.

-- Publishes the watched ones of the ids. For the writing part of a script, which must not end half-way: if a key was
-- overwritten, or the user may not publish, nothing is published. The watching client then reads the task by itself.
local function publish_changed(prefix, watched, ids)
  for i = 1, #ids, 1000 do
    local chunk = { unpack(ids, i, math.min(i + 999, #ids)) }
    for n, until_ms in ipairs(redis.pcall('ZMSCORE', watched, unpack(chunk))) do
      if until_ms then redis.pcall('PUBLISH', prefix .. 'changed', chunk[n]) end
    end
  end
end

-- Publishes the watched ones of tasks that have emitted something: in one message, but those of `firsts` with their first part.
-- As publish_changed, it never fails.
local function publish_emitted(prefix, watched, ids, firsts)
  local channel, heard = prefix .. 'changed', {}
  for i = 1, #ids, 1000 do
    local chunk = { unpack(ids, i, math.min(i + 999, #ids)) }
    for n, until_ms in ipairs(redis.pcall('ZMSCORE', watched, unpack(chunk))) do
      local id = chunk[n]
      if until_ms and firsts[id] then redis.pcall('PUBLISH', channel, '\n' .. id .. '\n' .. firsts[id])
      elseif until_ms then heard[#heard + 1] = id end
    end
  end
  if #heard > 0 then redis.pcall('PUBLISH', channel, '\t' .. table.concat(heard, '\t')) end
end
