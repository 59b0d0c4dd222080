-- What became of a unit: result entry, successors and scope step at once, or nothing.
-- A: job, token, incarnation, entry, entry_token, effects
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation')
need(A.entry, 'string', 'entry'); need(A.entry_token, 'string', 'entry_token')
local j = holds(job, A.token)
if not j then let_go(job, A.token, A.incarnation); return 'LOST' end
local RUN, EPOCH = j.run, j.epoch
local P = prefix_of(RUN, EPOCH)
--EFFECTS
check_effects(A.effects)
local root = j.root
add(A.effects, root)
redis.call('SREM', scope_key(root, j.scope), job)
redis.call('SREM', held_key(A.incarnation), job)
if j.fork == '' then redis.call('DEL', unit_key(job)) else redis.call('DEL', fork_key(root, j.fork)) end
redis.call('DEL', job_key(job))
weigh(root, -tonumber(j.rows))
local done = settle(root, j.scope)
redis.call('XADD', P .. 'stream', '*', 't', A.entry_token, 'k', 'unit', 'r', root, 'd', done and 1 or 0, 'e', A.entry)
return 'OK'
