--[[ Set the weight of a tenant, or pause or resume its tasks.
KEYS: meta call
ARGV: now prefix tenant weight on call_ms by
Returns: 1 changed, 0 it was so before
An empty `weight` keeps it; `on` is '1' (paused), '0' or '' (as it is). A tenant that has no tasks may be set, too.
`by` is who pauses, or '': as in pause.lua.
An operation, with a `call` of its own: a repeated call gets the same answer for call_ms, and undoes no later change.
]]
--#include _clock
--#include _time
--#include _time_of
--#include _call
--#include _queue
--#include _lanes
local meta, call, prefix, tenant, weight, on = KEYS[1], KEYS[2], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local stored_answer = answered_before(call)
if stored_answer then return tonumber(stored_answer) end
local settings, pauses = prefix .. 'tenants', prefix .. 'paused_tenants'
local by, names, name = ARGV[7], prefix .. 'paused_by', 'tenant ' .. tenant
for _, key in ipairs({ pauses, names }) do redis.call('HLEN', key) end  -- a key of another type ends the script here
local stored = redis.call('HGET', settings, tenant)
local own, since = string.match(stored or '1', '^(%S+) ?(%S*)$')
local changed = 0
if weight ~= '' and tonumber(weight) ~= tonumber(own) then own, changed = weight, 1 end
local was_paused = since ~= ''
if on ~= '' and (on == '1') ~= was_paused then
  since, changed = on == '1' and whole(queue_time_of(ARGV[1], meta)) or '', 1
end
local turn = redis.call('HGET', meta, 'turn')

-- Read: the indexes in which the tenant has tasks.
local wake, wake_gpu, indexes = {}, {}, {}
for _, member in ipairs(changed == 1 and on ~= '' and redis.call('ZRANGE', prefix .. 'lanes', 0, -1) or {}) do
  local index, lane = parts_of_key(member)
  if tenant_of(lane) == tenant then
    -- A limited lane that waits for its limit is in no turn.
    local is_open = not limits_text_of(lane) or redis.call('ZSCORE', limited_key(prefix .. index, tenant), lane)
    if is_open then indexes[index] = true end
  end
end
-- Suspects wait outside of lanes: all workers look for them.
local bases = changed == 1 and on == '0' and bases_of_all(prefix) or {}
redis.call('HDEL', meta, '')
redis.call('ZREM', prefix .. 'never', '')
redis.call('ZADD', prefix .. 'never', 'XX', 0, '')
redis.call('EXPIRE', prefix .. 'never', 1)
keep_answer(call, changed, math.ceil(ARGV[6] / 1000))
if changed == 0 then return 0 end
if tonumber(own) == 1 and since == '' then redis.call('HDEL', settings, tenant)
else redis.call('HSET', settings, tenant, since == '' and own or own .. ' ' .. since) end
if since == '' then redis.call('HDEL', pauses, tenant) else redis.call('HSET', pauses, tenant, since) end
if since == '' then redis.call('HDEL', names, name)
elseif on == '1' and not was_paused and by ~= '' then redis.call('HSET', names, name, since .. ' ' .. by) end
for index in pairs(indexes) do
  local key = turns_key(prefix .. index)
  if since ~= '' then
    redis.call('ZREM', key, tenant)
  else
    redis.call('ZADD', key, 'NX', least_start(prefix .. index, turn), tenant)
    local base, for_gpu = base_of_index(prefix, index)
    if for_gpu then wake_gpu[base] = true else wake[base] = true end
  end
end
for _, base in ipairs(bases) do wake[base], wake_gpu[base] = true, true end
wake_bases(wake, wake_gpu)
return changed
