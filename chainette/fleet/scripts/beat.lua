-- A worker lives: renews its lease and says what it is. NEW: it had none, so nothing is in its hands. A: incarnation, lease, fields
local me = need(A.incarnation, 'string', 'incarnation')
seconds(A.lease, 'lease'); scalars(A.fields, 'fields')
--STRIKES
local new = not redis.call('ZSCORE', 'chainette:lease', me)
redis.call('ZADD', 'chainette:lease', now() + A.lease, me)
redis.call('SADD', 'chainette:workers', me)
for name, value in pairs(A.fields) do redis.call('HSET', 'chainette:worker:' .. me, name, value) end
if new then pardon_all(me) end
return new and 'NEW' or 'OK'
