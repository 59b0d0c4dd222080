-- A worker ends in good order, with nothing left in its hands. A: incarnation
local me = need(A.incarnation, 'string', 'incarnation')
--STRIKES
if redis.call('SCARD', held_key(me)) > 0 then return 'HELD' end
pardon_all(me)
redis.call('ZREM', 'chainette:lease', me)
redis.call('SREM', 'chainette:workers', me)
redis.call('DEL', held_key(me), 'chainette:worker:' .. me)
return 'OK'
