-- Somebody hands a run over to the services. A: run, fields
local key = run_key(need(A.run, 'string', 'run'))
scalars(A.fields, 'fields')
if redis.call('EXISTS', key) == 1 then return 'KNOWN' end
redis.call('HSET', key, 'state', 'asked')
for name, value in pairs(A.fields) do redis.call('HSET', key, name, value) end
redis.call('SADD', 'chainette:runs', A.run)
return 'OK'
