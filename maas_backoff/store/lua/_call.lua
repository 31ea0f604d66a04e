-- Operations: each call has a key of its own, which keeps its answer.
-- A repeated call gets the same answer. It changes nothing twice, and no task that was created anew under the same id.
-- A copy of the call that the network delivers late changes nothing, either.

local function answered_before(call) return redis.call('HGET', call, 'answer') end

-- For the writing part of a script: HSET and EXPIRE were tried before.
local function keep_answer(call, answer, keep_s)
  redis.call('HSET', call, 'answer', answer)
  redis.call('EXPIRE', call, keep_s)
end
