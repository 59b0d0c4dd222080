-- The rest of a unit that killed a worker while it ran alone becomes two units that run alone.
-- A: job, token, incarnation, scope, part (the next one of the unit), effects
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation'); need(A.scope, 'string', 'scope'); whole(A.part, 'part')
local j = holds(job, A.token)
if not j then let_go(job, A.token, A.incarnation, A.scope); return 'LOST' end
if not is_next(job, j, A.part) then return 'BEHIND' end
local RUN, EPOCH = j.run, j.epoch
local P, BARRED = prefix_of(RUN, EPOCH), ''
--EFFECTS
check_effects(A.effects, j.root)
local lost = lost_scope(job, j.root, j.scope, A.effects)
if lost then -- else its scope would seem to hold the two halves only
  drop(job, j, A.incarnation)
  damage(RUN, lost)
  return 'LOST'
end
add(A.effects, j.root)
for _, u in ipairs(A.effects.units) do
  redis.call('LREM', 'rq:queue:' .. u.queue, -1, u.job)
  redis.call('HSET', job_key(u.job), 'solo', '1')
  redis.call('RPUSH', solo_key(j), u.job)
end
redis.call('SREM', scope_key(j.root, j.scope), job)
drop(job, j, A.incarnation)
redis.call('DEL', taken_key(j, job), job_key(job), unpack(payload_keys(j, job)))
weigh(j.root, -tonumber(j.rows))
note(RUN, 'split', job)
return 'OK'
