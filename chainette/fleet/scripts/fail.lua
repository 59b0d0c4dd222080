-- The engine did not answer: the unit waits, and no row's budget is spent. A: job, token, incarnation, delay, message
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation')
need(A.delay, 'number', 'delay'); need(A.message, 'string', 'message')
redis.call('SREM', held_key(A.incarnation), job)
local j = holds(job, A.token)
if not j then return 'LOST' end
redis.call('HSET', job_key(job), 'status', 'scheduled')
redis.call('HDEL', job_key(job), 'claim')
redis.call('ZADD', prefix_of(j.run, j.epoch) .. 'delayed', now() + A.delay, job)
note(j.run, 'retried', A.message)
return 'OK'
