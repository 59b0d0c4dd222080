-- Work on a unit that was claimed ahead begins: from here on the worker's death counts. A: job, token, incarnation, scope
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation'); need(A.scope, 'string', 'scope')
if not holds(job, A.token) then let_go(job, A.token, A.incarnation, A.scope); return 'LOST' end
redis.call('HSET', job_key(job), 'ahead', '')
return 'OK'
