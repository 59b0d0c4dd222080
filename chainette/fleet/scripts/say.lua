-- Something that others may want to know of a run; nothing where it is closed. A: run, fields
local key = run_key(need(A.run, 'string', 'run'))
scalars(A.fields, 'fields')
if redis.call('EXISTS', key) == 0 then return 'NONE' end
for name, value in pairs(A.fields) do redis.call('HSET', key, name, value) end
return 'OK'
