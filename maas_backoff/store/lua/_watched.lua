-- Who watches a task, or waits for its end, has put its id into `watched`, and reads the task again when it is published.

-- Publishes those of the ids that somebody watches. For the writing part of a script, which must not end half-way: where
-- a key was written over, or the user may not publish, nothing is published, and who watches looks by itself.
local function publish_changed(prefix, watched, ids)
  for i = 1, #ids, 1000 do
    local chunk = { unpack(ids, i, math.min(i + 999, #ids)) }
    for n, until_ms in ipairs(redis.pcall('ZMSCORE', watched, unpack(chunk))) do
      if until_ms then redis.pcall('PUBLISH', prefix .. 'changed', chunk[n]) end
    end
  end
end
