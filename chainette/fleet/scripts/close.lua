-- A run ends: nothing of it stays. A: run, epoch, owner, queues
local key = run_key(need(A.run, 'string', 'run'))
need(A.queues, 'table', 'queues')
local run = redis.call('HMGET', key, 'epoch', 'owner')
if tonumber(run[1] or -1) ~= need(A.epoch, 'number', 'epoch') or run[2] ~= need(A.owner, 'string', 'owner') then return 'LOST' end
local P = prefix_of(A.run, A.epoch)
for _, queue in ipairs(A.queues) do
  redis.call('DEL', 'rq:queue:' .. queue)
  redis.call('SREM', 'rq:queues', 'rq:queue:' .. queue)
end
redis.call('DEL', key, key .. ':notes', P .. 'stream', P .. 'live', P .. 'out', P .. 'delayed')
redis.call('SREM', 'chainette:runs', A.run)
return 'OK'
