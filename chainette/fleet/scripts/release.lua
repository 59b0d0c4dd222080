-- Handed back unharmed, to the front. A: job, token, incarnation
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation')
local j = holds(job, A.token)
let_go(job, A.token, A.incarnation)
if not j then return 'LOST' end
put_back(job, j, true)
return 'OK'
