-- The form of the data, as store/rehearsal.py numbers it. It is missing after a server has lost its data, and is then written
-- again; that of another release is left.
local SCHEMA = '1'
