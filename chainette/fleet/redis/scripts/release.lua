-- Handed back unharmed, to the front. A: job, token, incarnation, scope, unfinished
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation'); need(A.scope, 'string', 'scope')
need(A.unfinished, 'string', 'unfinished')
local j = holds(job, A.token)
if not j then let_go(job, A.token, A.incarnation, A.scope); return 'LOST' end
drop(job, j, A.incarnation)
leave_unfinished(job, A.unfinished)
put_back(job, j, true)
return 'OK'
