-- A service lives: renews its lease and its description. RQ knows nothing of it. A: me, lease, fields
local me = need(A.me, 'string', 'me')
seconds(A.lease, 'lease'); scalars(A.fields, 'fields')
redis.call('ZADD', 'chainette:lease', now() + A.lease, me)
redis.call('SADD', 'chainette:workers', me)
for name, value in pairs(A.fields) do redis.call('HSET', 'chainette:worker:' .. me, name, value) end
return 'OK'
