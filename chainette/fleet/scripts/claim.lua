-- The next unit that this worker can serve. A: incarnation, token, busy, queues = {{run, queue}, ...} in order, at
local me, token = need(A.incarnation, 'string', 'incarnation'), need(A.token, 'string', 'token')
need(A.queues, 'table', 'queues'); need(A.at, 'string', 'at')
if not redis.call('ZSCORE', 'chainette:lease', me) then return {'LOST'} end

local function take(job, run, epoch)
  local j = job_of(job)
  if j.status ~= 'queued' or j.run ~= run or j.epoch ~= epoch then return nil end
  local P = prefix_of(run, epoch)
  local payload
  if j.fork == '' then payload = redis.call('GET', P .. 'u:' .. job)
  else payload = redis.call('HGETALL', P .. 'f:' .. j.root .. ':' .. j.fork) end
  if not payload then redis.call('DEL', job_key(job)); return nil end
  redis.call('HSET', job_key(job), 'status', 'started', 'claim', token, 'worker_name', me, 'started_at', A.at)
  redis.call('SADD', held_key(me), job)
  local node = redis.call('HGET', job_key(job), 'data')
  return {'JOB', job, run, epoch, j.root, j.scope, j.fork, node, payload}
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
    for _ = 1, 64 do
      local job = redis.call('LPOP', queue)
      if not job then break end
      local found = take(job, run, state[2])
      if found then return found end
    end
  end
end
return {'EMPTY'}
