-- Somebody holds a run, continues it, or gives it up, which is for good. A: run, state
local key = run_key(need(A.run, 'string', 'run'))
local state = need(A.state, 'string', 'state')
if state ~= 'running' and state ~= 'paused' and state ~= 'cancelled' then error('chainette: no such state: ' .. state) end
local known = redis.call('HGET', key, 'state')
if not known then return 'NONE' end
if known == 'cancelled' then return state == known and 'OK' or 'CANCELLED' end
redis.call('HSET', key, 'state', state)
return 'OK'
