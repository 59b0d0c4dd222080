-- Messages of a run that cannot be right: the last 200 are kept for a week, and counted as long as the run lives.
-- A: run, epoch, why (of the last one), asides, entries (ids; they leave the epoch's stream)
local key, list = run_key(need(A.run, 'string', 'run')), 'chainette:aside:' .. A.run
need(A.why, 'string', 'why'); strings(A.asides, 'asides'); strings(A.entries, 'entries'); whole(A.epoch, 'epoch')
for _, aside in ipairs(A.asides) do redis.call('RPUSH', list, aside) end
for _, id in ipairs(A.entries) do redis.call('XDEL', prefix_of(A.run, A.epoch) .. 'stream', id) end
redis.call('LTRIM', list, -200, -1)
redis.call('EXPIRE', list, 604800)
if redis.call('EXISTS', key) == 1 then
  redis.call('HINCRBY', key, 'aside', #A.asides)
  redis.call('HSET', key, 'aside_why', A.why)
end
return 'OK'
