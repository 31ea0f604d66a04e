--[[ Store the progress of tasks that are processing.
KEYS: meta watched
ARGV: prefix | per task: id token progress message
Returns: per task 1 stored, 0 not
An empty token means any: progress from outside. An empty message keeps the last one.
The first write is an HDEL: a server whose memory is full does not refuse it.
]]
--#include _task
--#include _watched
local prefix, answers, notes, noted = ARGV[1], {}, {}, {}
for i = 2, #ARGV, 4 do
  local key, token = prefix .. 't:' .. ARGV[i], ARGV[i + 1]
  local task = fields_of(key, 's', 't') or {}
  local runs = task[1] == 'processing' or task[1] == 'external'
  local mine = runs and (token == '' or task[2] == token)
  if mine then
    notes[#notes + 1] = { key, ARGV[i + 2], ARGV[i + 3] }
    noted[#noted + 1] = ARGV[i]
  end
  answers[#answers + 1] = mine and 1 or 0
end
local is_watched = redis.call('EXISTS', KEYS[2]) == 1
redis.call('HDEL', KEYS[1], '')
for _, note in ipairs(notes) do
  if note[3] == '' then
    redis.call('HSET', note[1], 'g', note[2])
  else
    redis.call('HSET', note[1], 'g', note[2], 'm', note[3])
  end
end
if is_watched then publish_changed(prefix, KEYS[2], noted) end
return answers
