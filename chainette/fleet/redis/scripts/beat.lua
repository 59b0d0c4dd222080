-- A worker lives: renews its lease and its description. NEW: it had none, so it holds no unit.
-- A: incarnation, lease, fields, about (shown by RQ), queues = {{run, queue}, ...}, at
local me = need(A.incarnation, 'string', 'incarnation')
seconds(A.lease, 'lease'); scalars(A.fields, 'fields'); scalars(A.about, 'about'); need(A.at, 'string', 'at')
pairs_of(A.queues, 'queues')
--STRIKES
--WORKERS
local new = not redis.call('ZSCORE', 'chainette:lease', me)
redis.call('SADD', 'chainette:workers', me)
for name, value in pairs(A.fields) do redis.call('HSET', 'chainette:worker:' .. me, name, value) end
local live, queues = {}, {}
for _, entry in ipairs(A.queues) do
  local run = entry[1]
  if live[run] == nil then live[run] = redis.call('SISMEMBER', 'chainette:runs', run) == 1 end
  if live[run] then queues[#queues + 1] = entry[2] end
end
register(me, A.about, queues, A.at)
if new then pardon_all(me) end
-- Last, so that a call that failed half-way still is NEW when it is repeated.
redis.call('ZADD', 'chainette:lease', now() + A.lease, me)
return new and 'NEW' or 'OK'
