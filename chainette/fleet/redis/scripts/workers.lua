-- Workers as RQ shows them. Needs common.lua before it.
local function rq_worker_key(me) return 'rq:worker:' .. me end

-- A worker says that it lives, and which queues it takes units from; RQ's own time to live ends it where nobody reaps.
local function register(me, about, queues, at)
  local words = 'chainette:worker:' .. me
  local before, now_on = redis.call('HGET', words, 'queues'), table.concat(queues, ',')
  for name, value in pairs(about) do redis.call('HSET', rq_worker_key(me), name, value) end
  redis.call('HSET', rq_worker_key(me), 'last_heartbeat', at, 'queues', now_on,
    'state', redis.call('SCARD', held_key(me)) > 0 and 'busy' or 'idle')
  redis.call('HSETNX', rq_worker_key(me), 'birth', at)
  redis.call('EXPIRE', rq_worker_key(me), 480)
  redis.call('SADD', 'rq:workers', rq_worker_key(me))
  if (before or '') == now_on then return end
  for _, queue in ipairs(split_words(before)) do redis.call('SREM', 'rq:workers:' .. queue, rq_worker_key(me)) end
  for _, queue in ipairs(queues) do redis.call('SADD', 'rq:workers:' .. queue, rq_worker_key(me)) end
  redis.call('HSET', words, 'queues', now_on)
end

-- Everything that is known of a worker goes.
local function unregister(me)
  for _, queue in ipairs(split_words(redis.call('HGET', 'chainette:worker:' .. me, 'queues'))) do
    redis.call('SREM', 'rq:workers:' .. queue, rq_worker_key(me))
  end
  redis.call('SREM', 'rq:workers', rq_worker_key(me))
  redis.call('ZREM', 'chainette:lease', me)
  redis.call('SREM', 'chainette:workers', me)
  redis.call('DEL', held_key(me), 'chainette:worker:' .. me, rq_worker_key(me))
end
