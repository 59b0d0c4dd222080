-- A worker ends in good order, with nothing left in its hands. A: incarnation
local me = need(A.incarnation, 'string', 'incarnation')
--STRIKES
--WORKERS
if redis.call('SCARD', held_key(me)) > 0 then return 'HELD' end
pardon_all(me)
unregister(me)
return 'OK'
