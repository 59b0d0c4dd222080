-- Somebody holds a run, continues it, or gives it up, which is for good: its remaining keys then keep its owner from
-- beginning it again, for 7 days. A: run, state, reason ("" for none), word (that cancels it)
local key = run_key(need(A.run, 'string', 'run'))
local state, reason = need(A.state, 'string', 'state'), need(A.reason, 'string', 'reason')
need(A.word, 'string', 'word')
if state ~= 'running' and state ~= 'paused' and state ~= 'cancelled' then error('chainette: no such state: ' .. state) end
local known = redis.call('HGET', key, 'state')
if not known then return 'NONE' end
if known == 'cancelled' then return state == known and 'OK' or 'CANCELLED' end
if state == 'running' and redis.call('HEXISTS', key, 'epoch') == 0 then state = 'asked' end
redis.call('HSET', key, 'state', state, 'reason', reason)
if state == 'cancelled' then -- its sink may be gone for good; one that comes back within a week learns of it
  redis.call('SET', cancel_key(A.run), A.word, 'EX', 604800)
  redis.call('EXPIRE', order_key(A.run), 604800)
  local run = redis.call('HMGET', key, 'epoch', 'queues')
  for _, queue in ipairs(split_words(run[2])) do forget_queue(queue) end
  redis.call('EXPIRE', key, 604800)
  redis.call('EXPIRE', key .. ':notes', 604800)
  if not run[1] then return 'OK' end
  for _, kept in ipairs({'stream', 'live', 'out'}) do redis.call('EXPIRE', prefix_of(A.run, run[1]) .. kept, 604800) end
end
return 'OK'
