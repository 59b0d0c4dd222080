-- The next root: repeatable by any coordinator, since the cursor must be where the caller thinks it is.
-- A: run, epoch, k, root, rows, record, effects, entry (bad lines; "" for none), empty (the entry then), token
local RUN, EPOCH = need(A.run, 'string', 'run'), whole(A.epoch, 'epoch')
local P, BARRED = prefix_of(RUN, EPOCH), redis.call('HGET', run_key(RUN), 'barred') or ''
--EFFECTS
local root = whole(A.root, 'root')
whole(A.k, 'k'); whole(A.rows, 'rows'); need(A.record, 'string', 'record')
need(A.entry, 'string', 'entry'); need(A.empty, 'string', 'empty'); need(A.token, 'string', 'token')
local run = redis.call('HMGET', run_key(RUN), 'epoch', 'state', 'cursor', 'live_rows', 'window', 'live_bytes', 'window_bytes')
if tonumber(run[1] or -1) ~= EPOCH then return 'LOST' end
if run[2] ~= 'running' then return run[2] or '' end
if tonumber(run[3]) ~= A.k then return 'BEHIND' end
local full = tonumber(run[4]) >= tonumber(run[5]) or (run[7] and tonumber(run[6]) >= tonumber(run[7]))
if full and redis.call('HLEN', P .. 'live') > 0 then return 'FULL' end
check_effects(A.effects, root)
redis.call('HSET', P .. 'live', root, A.rows)
redis.call('HINCRBY', run_key(RUN), 'live_rows', A.rows)
redis.call('HINCRBY', run_key(RUN), 'live_bytes', #A.record)
redis.call('SET', P .. 'r:' .. root, A.record)
add(A.effects, root)
weigh(root, 0)
redis.call('HINCRBY', run_key(RUN), 'cursor', 1)
redis.call('HSET', run_key(RUN), 'last', root)
local stage = stage_of(#A.effects.units == 0)
local entry = A.entry == '' and A.empty or A.entry
if stage > 0 or A.entry ~= '' then
  local results = redis.call('HGET', run_key(RUN), 'results') or 0
  local id = redis.call('XADD', P .. 'stream', '*', 't', A.token, 'k', 'admit', 'r', root, 'd', stage, 'n', results, 'e', entry)
  if stage == 2 then suspend(root, id) end
end
return 'OK'
