-- The input is at its end: how many roots this epoch admits in all. A: run, epoch, total
local key = run_key(need(A.run, 'string', 'run'))
local run = redis.call('HMGET', key, 'epoch', 'cursor')
if tonumber(run[1] or -1) ~= whole(A.epoch, 'epoch') then return 'LOST' end
if tonumber(run[2]) ~= whole(A.total, 'total') then return 'BEHIND' end
redis.call('HSET', key, 'total', A.total)
return 'OK'
