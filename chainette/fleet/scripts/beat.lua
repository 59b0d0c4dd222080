-- A worker lives: renews its lease and says what it is. A: incarnation, lease, fields
local me = need(A.incarnation, 'string', 'incarnation')
need(A.lease, 'number', 'lease'); need(A.fields, 'table', 'fields')
local lost = redis.call('SISMEMBER', 'chainette:workers', me) == 1 and not redis.call('ZSCORE', 'chainette:lease', me)
redis.call('ZADD', 'chainette:lease', now() + A.lease, me)
redis.call('SADD', 'chainette:workers', me)
for name, value in pairs(A.fields) do redis.call('HSET', 'chainette:worker:' .. me, name, value) end
return lost and 'LOST' or 'OK'
