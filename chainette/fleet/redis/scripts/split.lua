-- A unit that killed a worker while it ran alone becomes two that run alone. A: job, token, incarnation, scope, effects
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation'); need(A.scope, 'string', 'scope')
local j = holds(job, A.token)
if not j then let_go(job, A.token, A.incarnation, A.scope); return 'LOST' end
local RUN, EPOCH = j.run, j.epoch
local P, BARRED = prefix_of(RUN, EPOCH), ''
--EFFECTS
check_effects(A.effects)
add(A.effects, j.root)
for _, u in ipairs(A.effects.units) do
  redis.call('LREM', 'rq:queue:' .. u.queue, -1, u.job)
  redis.call('HSET', job_key(u.job), 'solo', '1')
  redis.call('RPUSH', solo_key(j), u.job)
end
redis.call('SREM', scope_key(j.root, j.scope), job)
drop(job, j, A.incarnation)
redis.call('DEL', unit_key(job), job_key(job))
weigh(j.root, -tonumber(j.rows))
note(RUN, 'split', job)
return 'OK'
