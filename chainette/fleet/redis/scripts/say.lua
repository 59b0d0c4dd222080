-- Something that others may want to know of a run; nothing where it is closed. Its name among the runs comes back if it was
-- lost. A: run, fields
local key = run_key(need(A.run, 'string', 'run'))
scalars(A.fields, 'fields')
if redis.call('EXISTS', key) == 0 then return 'NONE' end
write_fields(A.run, A.fields)
redis.call('SADD', 'chainette:runs', A.run)
return 'OK'
