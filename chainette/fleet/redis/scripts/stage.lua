-- A part of an outcome that is too large to travel with the commit, which only renames it. It goes by itself where no commit
-- comes, and with its epoch. A: job, token, incarnation, scope, number (of the part), seconds, part
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation'); need(A.scope, 'string', 'scope'); need(A.part, 'string', 'part')
whole(A.number, 'number'); seconds(A.seconds, 'seconds')
local j = holds(job, A.token)
if not j then let_go(job, A.token, A.incarnation, A.scope); return 'LOST' end
redis.call('SET', stage_key(j, A.token, A.number), A.part, 'PX', math.max(1, math.floor(A.seconds * 1000)))
return 'OK'
