-- A run ends: nothing of it stays; again where it is closed already. A: run, epoch, owner, queues
local key = run_key(need(A.run, 'string', 'run'))
strings(A.queues, 'queues'); whole(A.epoch, 'epoch'); need(A.owner, 'string', 'owner')
local run = redis.call('HMGET', key, 'epoch', 'owner', 'state')
if run[1] and run[3] ~= 'cancelled' and (tonumber(run[1]) ~= A.epoch or run[2] ~= A.owner) then return 'LOST' end
local fields = redis.call('HGETALL', key)
for i = 1, #fields, 2 do
  local engine = string.match(fields[i], '^used:(.+)$')
  if engine then
    redis.call('HSET', CLOSED, engine, amount_words(added(amounts_of(redis.call('HGET', CLOSED, engine)), amounts_of(fields[i + 1]))))
  end
end
local P = prefix_of(A.run, A.epoch)
for _, queue in ipairs(A.queues) do
  forget_queue(queue)
  redis.call('SREM', 'rq:queues', 'rq:queue:' .. queue)
  redis.call('DEL', 'rq:workers:' .. queue)
end
redis.call('DEL', key, key .. ':notes', order_key(A.run), cancel_key(A.run), P .. 'stream', P .. 'live', P .. 'out', P .. 'parked')
redis.call('SREM', 'chainette:runs', A.run)
return 'OK'
