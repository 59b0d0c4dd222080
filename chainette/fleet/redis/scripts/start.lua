-- Work on a unit begins that was claimed ahead, or that runs alone: from here on the worker's death counts.
-- A: job, token, incarnation, scope, begun (a sealed word that it runs a row alone, or "")
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation'); need(A.scope, 'string', 'scope')
need(A.begun, 'string', 'begun')
if not holds(job, A.token) then let_go(job, A.token, A.incarnation, A.scope); return 'LOST' end
redis.call('HSET', job_key(job), 'ahead', '')
if A.begun ~= '' then
  local before = redis.call('HGET', job_key(job), 'begun') or ''
  redis.call('HSET', job_key(job), 'begun', string.sub(before .. ' ' .. A.begun, -4096))
end
return 'OK'
