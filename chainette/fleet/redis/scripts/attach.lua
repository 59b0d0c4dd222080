-- A sink comes back to an epoch: only if the stream still continues the durable rows (the anchor), and no unit is gone.
-- A: run, epoch, owner, id, token
local key = run_key(need(A.run, 'string', 'run'))
need(A.owner, 'string', 'owner'); need(A.id, 'string', 'id'); need(A.token, 'string', 'token')
if tonumber(redis.call('HGET', key, 'epoch') or -1) ~= whole(A.epoch, 'epoch') then return 'LOST' end
local entry = redis.call('XRANGE', prefix_of(A.run, A.epoch) .. 'stream', A.id, A.id)[1]
if not entry or entry[2][2] ~= A.token then return 'LOST' end
if redis.call('HEXISTS', key, 'damaged') == 1 then return 'LOST' end
redis.call('HSET', key, 'owner', A.owner)
return 'OK'
