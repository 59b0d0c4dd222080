-- The engine did not answer: the unit waits, and no row's budget is spent. A: job, token, incarnation, scope, unfinished, delay, message
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation'); need(A.scope, 'string', 'scope')
need(A.unfinished, 'string', 'unfinished')
seconds(A.delay, 'delay'); need(A.message, 'string', 'message')
local j = holds(job, A.token)
if not j then let_go(job, A.token, A.incarnation, A.scope); return 'LOST' end
drop(job, j, A.incarnation)
leave_unfinished(job, A.unfinished)
redis.call('HSET', job_key(job), 'status', 'scheduled', 'exc_info', A.message, 'claim', '', 'ahead', '')
redis.call('ZADD', 'rq:scheduled:' .. j.origin, now() + A.delay, job)
note(j.run, 'retried', A.message)
return 'OK'
