-- Takes units back from workers whose lease is over; any process may call it, at any time. A: (empty)
--STRIKES
--WORKERS
local lost = {}
for _, me in ipairs(redis.call('ZRANGEBYSCORE', 'chainette:lease', '-inf', now(), 'LIMIT', 0, 16)) do
  for _, job in ipairs(redis.call('SMEMBERS', held_key(me))) do
    local j = in_hand(job, me)
    if j then
      drop(job, j, me)
      strike(job, j, me)
      note(j.run, 'lost', me .. ' lost ' .. job)
    end
  end
  unregister(me)
  lost[#lost + 1] = me
end
return lost
