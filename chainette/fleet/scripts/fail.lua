-- The engine did not answer: the unit waits, and no row's budget is spent. A: job, token, incarnation, delay, message
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation')
seconds(A.delay, 'delay'); need(A.message, 'string', 'message')
local j = holds(job, A.token)
let_go(job, A.token, A.incarnation)
if not j then return 'LOST' end
redis.call('HSET', job_key(job), 'status', 'scheduled')
redis.call('HDEL', job_key(job), 'claim', 'ahead')
redis.call('ZADD', prefix_of(j.run, j.epoch) .. 'delayed', now() + A.delay, job)
note(j.run, 'retried', A.message)
return 'OK'
