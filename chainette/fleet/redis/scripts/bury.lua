-- A unit that its worker cannot read, or cannot be the unit it says, is never given out again.
-- A: job, token, incarnation, scope, reason
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation'); need(A.scope, 'string', 'scope'); need(A.reason, 'string', 'reason')
local j = holds(job, A.token)
if not j then let_go(job, A.token, A.incarnation, A.scope); return 'LOST' end
drop(job, j, A.incarnation)
bury(job, j.origin, j.run, A.incarnation, A.reason)
local scope = prefix_of(j.run, j.epoch) .. 's:' .. j.root .. ':' .. j.scope
if redis.call('SISMEMBER', scope, job) == 1 then damage(j.run, A.reason) end
return 'OK'
