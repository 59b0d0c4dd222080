-- After a script met a key of another type than ours: such a key is as good as lost, so it is deleted, and comes back as
-- lost keys do. A: the arguments of the script that failed, which tell the keys it uses; reap.lua names none, and uses those of
-- members whose lease has ended.
for _, name in ipairs({'incarnation', 'me', 'run', 'job'}) do if A[name] ~= nil then need(A[name], 'string', name) end end
local run, epoch = A.run, A.epoch
if not run and A.job then run, epoch = string.match(A.job, '^(.*)_(%d+)_%d+_%x+$') end

-- Units of the run may have been in it.
local function own(key, kind, run)
  local found = redis.call('TYPE', key).ok
  if found == 'none' or found == kind then return end
  local deleted = redis.pcall('DEL', key)
  if type(deleted) == 'table' and deleted.err then return end -- workers may not: a process that may meets it too
  if run then damage(run, key .. ' held a ' .. found .. ', not a ' .. kind) end
end

for key, kind in pairs({['chainette:lease'] = 'zset', ['chainette:workers'] = 'set', ['chainette:runs'] = 'set', ['chainette:spent'] = 'hash',
    ['rq:workers'] = 'set', ['rq:queues'] = 'set'}) do own(key, kind) end

local function own_queue(run, epoch, queue)
  own('rq:queue:' .. queue, 'list', run); own('rq:scheduled:' .. queue, 'zset', run); own('rq:failed:' .. queue, 'zset', run)
  own(wip_key(queue), 'zset'); own('rq:workers:' .. queue, 'set')
  local P = prefix_of(run, epoch)
  own(P .. 'solo:' .. queue, 'list', run); own(P .. 'broken:' .. queue, 'list', run); own(P .. 'turn:' .. queue, 'string')
end

local function own_run(run)
  own(run_key(run), 'hash'); own(run_key(run) .. ':notes', 'stream'); own('chainette:aside:' .. run, 'list')
  own(order_key(run), 'string'); own(cancel_key(run), 'string')
  return redis.call('HGET', run_key(run), 'epoch') or '0'
end

for _, entry in ipairs(type(A.queues) == 'table' and A.queues or {}) do
  if type(entry) == 'table' then own_queue(entry[1], own_run(entry[1]), entry[2]) elseif run then own_queue(run, epoch, entry) end
end
if run then
  local P = prefix_of(run, epoch or own_run(run))
  own_run(run)
  own(P .. 'stream', 'stream', run); own(P .. 'live', 'hash', run); own(P .. 'out', 'hash', run)
  own(P .. 'parked', 'list', run); own(P .. 'apart', 'list', run)
  own(P .. 'answers:new', 'hash'); own(P .. 'answers:old', 'hash'); own(P .. 'asking', 'hash')
end

local function own_job(job, run, epoch)
  own(job_key(job), 'hash', run)
  own(taken_key({run = run, epoch = epoch}, job), 'set', run)
  local j = job_of(job)
  if j.origin then own_queue(run, epoch, j.origin) end
  if j.root then
    own(prefix_of(run, epoch) .. 's:' .. j.root .. ':' .. (j.scope or ''), 'set', run)
    own(prefix_of(run, epoch) .. 'f:' .. j.root .. ':' .. (j.scope or ''), 'hash', run)
  end
end
if A.job and run then own_job(A.job, run, epoch) end

local function own_member(me)
  own('chainette:worker:' .. me, 'hash'); own('rq:worker:' .. me, 'hash'); own(held_key(me), 'set')
  for queue in string.gmatch(redis.call('HGET', 'chainette:worker:' .. me, 'queues') or '', '[^, ]+') do own('rq:workers:' .. queue, 'set') end
  for _, run in ipairs(redis.call('SMEMBERS', 'chainette:runs')) do own(prefix_of(run, own_run(run)) .. 'struck:' .. me, 'hash') end
end
local me = A.incarnation or A.me
if me then own_member(me) end
if me or run then return 'OK' end
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', 'chainette:lease', '-inf', now(), 'LIMIT', 0, 16)) do
  own_member(dead)
  for _, job in ipairs(redis.call('SMEMBERS', held_key(dead))) do
    run, epoch = string.match(job, '^(.*)_(%d+)_%d+_%x+$')
    if run then own_run(run); own_job(job, run, epoch) end
  end
end
return 'OK'
