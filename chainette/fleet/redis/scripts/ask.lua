-- Somebody hands a run over to the services. A: run, fields
local key = run_key(need(A.run, 'string', 'run'))
scalars(A.fields, 'fields')
if redis.call('EXISTS', key) == 1 then return 'KNOWN' end
redis.call('SADD', 'chainette:runs', A.run) -- first, since it fails if somebody put a key of another type there
redis.call('HSET', key, 'state', 'asked')
write_fields(A.run, A.fields)
return 'OK'
