-- A body of a commit that is too large to travel with the commit, which only renames it. It goes by itself where no commit
-- comes, and with its epoch. A: job, token, incarnation, scope, entry (its token), number (of the body), seconds, body
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation'); need(A.scope, 'string', 'scope'); need(A.body, 'string', 'body')
need(A.entry, 'string', 'entry')
whole(A.number, 'number'); seconds(A.seconds, 'seconds')
local j = holds(job, A.token)
if not j then let_go(job, A.token, A.incarnation, A.scope); return 'LOST' end
redis.call('SET', stage_key(j, A.entry, A.number), A.body, 'PX', math.max(1, math.floor(A.seconds * 1000)))
return 'OK'
