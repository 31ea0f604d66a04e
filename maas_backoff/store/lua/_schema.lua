-- The schema of the data, as store/preflight/trial.py numbers it. It is written again after a server has lost its data.
-- The schema of another release is left as it is.
local SCHEMA = '1'
