-- A service takes a role in a run: only where nobody that lives has it. A: run, role, me
local key = run_key(need(A.run, 'string', 'run'))
local role, me = need(A.role, 'string', 'role'), need(A.me, 'string', 'me')
if redis.call('EXISTS', key) == 0 then return 'NONE' end
local holder = redis.call('HGET', key, role)
local lease = holder and holder ~= '' and holder ~= me and redis.call('ZSCORE', 'chainette:lease', holder)
if lease and tonumber(lease) > now() then return 'HELD' end
redis.call('HSET', key, role, me)
redis.call('HDEL', key, 'refused:' .. me)
return 'OK'
