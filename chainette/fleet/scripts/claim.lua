-- The next unit that this worker can serve. A: incarnation, token, alone (it holds nothing), at,
-- queues = {{run, queue}, ...} in order. DRAIN: a unit waits that must run alone; finish what is in hand first.
local me, token = need(A.incarnation, 'string', 'incarnation'), need(A.token, 'string', 'token')
need(A.queues, 'table', 'queues'); need(A.at, 'string', 'at')
if not redis.call('ZSCORE', 'chainette:lease', me) then return {'LOST'} end

local function take(job, run, epoch, kind, status)
  local j = job_of(job)
  if j.status ~= status or j.run ~= run or j.epoch ~= epoch then return nil end
  local P = prefix_of(run, epoch)
  local payload
  if j.fork == '' then payload = redis.call('GET', P .. 'u:' .. job)
  else payload = redis.call('HGETALL', P .. 'f:' .. j.root .. ':' .. j.fork) end
  if not payload then redis.call('DEL', job_key(job)); return nil end
  redis.call('HSET', job_key(job), 'status', 'started', 'claim', token, 'worker_name', me, 'started_at', A.at)
  redis.call('SADD', held_key(me), job)
  local node = redis.call('HGET', job_key(job), 'data')
  return {kind, job, run, epoch, j.root, j.scope, j.fork, node, payload}
end

for _, entry in ipairs(A.queues) do
  local run, queue = entry[1], 'rq:queue:' .. entry[2]
  local state = redis.call('HMGET', run_key(run), 'state', 'epoch')
  if state[1] == 'running' then
    local P = prefix_of(run, state[2])
    for _, job in ipairs(redis.call('ZRANGEBYSCORE', P .. 'delayed', '-inf', now(), 'LIMIT', 0, 16)) do
      redis.call('ZREM', P .. 'delayed', job)
      local j = job_of(job)
      if j.status == 'scheduled' then put_back(job, j, true) end
    end
    local broken = redis.call('LPOP', P .. 'broken:' .. entry[2])
    local mend = broken and take(broken, run, state[2], 'MEND', 'broken')
    if mend then return mend end
    if redis.call('LLEN', P .. 'solo:' .. entry[2]) > 0 then
      local turn = P .. 'turn:' .. entry[2]
      local holder = redis.call('GET', turn)
      if not holder or holder == me then
        redis.call('SET', turn, me, 'EX', 30)
        if not A.alone then return {'DRAIN'} end
        local solo = take(redis.call('LPOP', P .. 'solo:' .. entry[2]), run, state[2], 'SOLO', 'queued')
        if solo then return solo end
      end
    end
    for _ = 1, 64 do
      local job = redis.call('LPOP', queue)
      if not job then break end
      local found = take(job, run, state[2], 'JOB', 'queued')
      if found then return found end
    end
  end
end
return {'EMPTY'}
