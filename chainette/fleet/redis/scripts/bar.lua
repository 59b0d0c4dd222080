-- Units of some queues wait for a later phase from here on; those that lie in them already do not.
-- A: run, epoch, owner, queues
local key = run_key(need(A.run, 'string', 'run'))
whole(A.epoch, 'epoch'); need(A.owner, 'string', 'owner'); strings(A.queues, 'queues')
local run = redis.call('HMGET', key, 'epoch', 'owner')
if tonumber(run[1] or -1) ~= A.epoch or run[2] ~= A.owner then return 'LOST' end
redis.call('HSET', key, 'barred', table.concat(A.queues, ' '))
return 'OK'
