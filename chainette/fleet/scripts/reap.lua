-- Takes units back from workers whose lease is over; any process may call it, at any time. A: (empty)
local lost = {}
for _, me in ipairs(redis.call('ZRANGEBYSCORE', 'chainette:lease', '-inf', now(), 'LIMIT', 0, 16)) do
  for _, job in ipairs(redis.call('SMEMBERS', held_key(me))) do
    local j = job_of(job)
    if j.run and j.status == 'started' then
      redis.call('HINCRBY', job_key(job), 'strikes', 1)
      put_back(job, j, true)
      note(j.run, 'lost', me .. ' lost ' .. job)
    end
  end
  redis.call('ZREM', 'chainette:lease', me)
  redis.call('SREM', 'chainette:workers', me)
  redis.call('DEL', held_key(me), 'chainette:worker:' .. me)
  lost[#lost + 1] = me
end
return lost
