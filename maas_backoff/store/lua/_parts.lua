-- The stream of a task is the Redis stream `parts:<id>`, and its log is `log:<id>`. The field `b` of the task says that it has any.
-- The id of a part is "<token>-<place>": places count from 1 over the parts of the stream. The id of a line is "<token>-<line>".
-- A part has one field, named by its form ('t': text, 'j': JSON) and the number of the attempt. A line has the field 'l' and the number.

-- A stream or a log of a live task has this time to live, from the first parts of each attempt on. settle.lua sets the one of a
-- finished task. The time matters only if a worker of an older release has ended the task, or a person has removed its hash.
local KEPT_LIVE_S = 30 * 86400

-- The field `b` is "owner base" or, with a log, "owner base l". The owner is the token of the attempt that emitted last; 0: none.
-- The base is the token of the attempt whose parts come first: it is lower than the owner if the owner has kept them.
local function owner_and_base(emitted)
  local owner, base, log = string.match(emitted or '', '^(%d+) (%d+)(.*)$')
  return owner or '0', base or '0', log or ''
end

local function stream_key(prefix, id) return prefix .. 'parts:' .. id end
local function log_key(prefix, id) return prefix .. 'log:' .. id end

-- Removes the hash of a task, and what it has emitted. For the writing part of a script, which has called UNLINK before.
local function unlink_task(prefix, id, emitted)
  if emitted then redis.call('UNLINK', prefix .. 't:' .. id, stream_key(prefix, id), log_key(prefix, id))
  else redis.call('UNLINK', prefix .. 't:' .. id) end
end

-- Lets what a finished task has emitted end with the task. For the writing part of a script, which has called EXPIRE before.
local function expire_emitted(prefix, id, ttl_s)
  redis.call('EXPIRE', stream_key(prefix, id), ttl_s)
  redis.call('EXPIRE', log_key(prefix, id), ttl_s)
end

-- A task that is retried by hand begins its stream anew, and keeps its log. As above; HDEL and HSET were called before, too.
local function forget_stream(prefix, id, emitted)
  local _, _, log = owner_and_base(emitted)
  redis.call('UNLINK', stream_key(prefix, id))
  if log == '' then
    redis.call('HDEL', prefix .. 't:' .. id, 'b')
  else
    redis.call('HSET', prefix .. 't:' .. id, 'b', '0 0' .. log)
    redis.call('EXPIRE', log_key(prefix, id), KEPT_LIVE_S)
  end
end
