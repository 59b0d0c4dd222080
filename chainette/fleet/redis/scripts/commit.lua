-- What became of a unit: result entry, successors and scope step at once, or nothing. UNSTAGED: a part that was staged is
-- gone, since it waited too long.
-- A: job, token, incarnation, scope, entry, entry_token, effects
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation'); need(A.scope, 'string', 'scope')
need(A.entry_token, 'string', 'entry_token')
local j = holds(job, A.token)
if not j then let_go(job, A.token, A.incarnation, A.scope); return 'LOST' end
local RUN, EPOCH = j.run, j.epoch
local P, BARRED = prefix_of(RUN, EPOCH), j.barred
--EFFECTS
check_effects(A.effects)
body(A.entry, 'entry')
local bodies = {A.entry}
for _, u in ipairs(A.effects.units) do bodies[#bodies + 1] = u.payload end
if not all_there(bodies) then return 'UNSTAGED' end
local root = j.root
local lost = lost_scope(job, root, j.scope, A.effects)
if lost then -- else it would end a fork or a root that is not at its end
  drop(job, j, A.incarnation)
  damage(RUN, lost)
  return 'LOST'
end
add(A.effects, root)
redis.call('SREM', scope_key(root, j.scope), job)
drop(job, j, A.incarnation)
if j.fork == '' then redis.call('DEL', unit_key(job)) else redis.call('DEL', fork_key(root, j.fork)) end
redis.call('DEL', job_key(job))
weigh(root, -tonumber(j.rows))
local stage = stage_of(settle(root, j.scope))
-- rows that went into all results of the epoch: between two entries, their difference says how many rows lie
local results = redis.call('HINCRBY', run_key(RUN), 'results', j.rows)
local apart = type(A.entry) == 'table'
local id = redis.call('XADD', P .. 'stream', '*', 't', A.entry_token, 'k', 'unit', 'r', root, 'd', stage, 'n', results,
  apart and 'b' or 'e', apart and 'apart' or A.entry)
if stage == 2 then suspend(root, id) end
if apart then
  keep(P .. 'e:' .. A.entry_token, A.entry)
  redis.call('RPUSH', P .. 'apart', id .. ' ' .. A.entry_token)
end
return 'OK'
