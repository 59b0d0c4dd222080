-- Takes units back from workers whose lease is over; any process may call it, at any time. A: (empty)
--STRIKES
local lost = {}
for _, me in ipairs(redis.call('ZRANGEBYSCORE', 'chainette:lease', '-inf', now(), 'LIMIT', 0, 16)) do
  for _, job in ipairs(redis.call('SMEMBERS', held_key(me))) do
    local j = in_hand(job, me)
    if j then
      strike(job, j, me)
      note(j.run, 'lost', me .. ' lost ' .. job)
    end
  end
  redis.call('ZREM', 'chainette:lease', me)
  redis.call('SREM', 'chainette:workers', me)
  redis.call('DEL', held_key(me), 'chainette:worker:' .. me)
  lost[#lost + 1] = me
end
return lost
