-- A service gives a role back, if it still has it. A: run, role, me
local key = run_key(need(A.run, 'string', 'run'))
local role, me = need(A.role, 'string', 'role'), need(A.me, 'string', 'me')
if redis.call('HGET', key, role) == me then redis.call('HDEL', key, role) end
return 'OK'
