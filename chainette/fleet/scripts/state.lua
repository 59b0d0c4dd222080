-- Somebody holds a run, continues it, or gives it up, which is for good. A: run, state
local key = run_key(need(A.run, 'string', 'run'))
local state = need(A.state, 'string', 'state')
if state ~= 'running' and state ~= 'paused' and state ~= 'cancelled' then error('chainette: no such state: ' .. state) end
local known = redis.call('HGET', key, 'state')
if not known then return 'NONE' end
if known == 'cancelled' then return state == known and 'OK' or 'CANCELLED' end
redis.call('HSET', key, 'state', state)
if state == 'cancelled' then -- its sink may be gone for good; one that comes back within a week learns of it
  local run = redis.call('HMGET', key, 'epoch', 'queues')
  for _, queue in ipairs(split_words(run[2])) do forget_queue(queue) end
  redis.call('EXPIRE', key, 604800)
  redis.call('EXPIRE', key .. ':notes', 604800)
  for _, kept in ipairs({'stream', 'live', 'out'}) do redis.call('EXPIRE', prefix_of(A.run, run[1]) .. kept, 604800) end
end
return 'OK'
