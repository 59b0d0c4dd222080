-- Handed back unharmed, to the front. A: job, token, incarnation
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation')
redis.call('SREM', held_key(A.incarnation), job)
local j = holds(job, A.token)
if not j then return 'LOST' end
put_back(job, j, true)
return 'OK'
