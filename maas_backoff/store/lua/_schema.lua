-- The form of the data, as store/rehearsal.py numbers it: it is missing after a server has lost its data.

local SCHEMA = '1'

-- For the writing part of a script, and only where there is none: that of another release is left.
local function note_schema(meta) redis.call('HSET', meta, 'schema', SCHEMA) end
