-- Takes units back from workers whose lease is over; any process may call it, at any time. A: (empty)
local lost = {}
for _, me in ipairs(redis.call('ZRANGEBYSCORE', 'chainette:lease', '-inf', now(), 'LIMIT', 0, 16)) do
  for _, job in ipairs(redis.call('SMEMBERS', held_key(me))) do
    local j = in_hand(job, me)
    if j then
      -- first death: again; second: alone; only a death alone says that the unit is the cause
      if j.solo == '1' then
        local deaths = redis.call('HINCRBY', job_key(job), 'deaths', 1)
        if tonumber(j.rows) > 1 or deaths >= 2 then
          redis.call('HSET', job_key(job), 'status', 'broken')
          redis.call('HDEL', job_key(job), 'claim')
          redis.call('RPUSH', broken_key(j), job)
        else
          put_back(job, j, true)
        end
      else
        if redis.call('HINCRBY', job_key(job), 'strikes', 1) >= 2 then
          redis.call('HSET', job_key(job), 'solo', '1')
          j.solo = '1'
        end
        put_back(job, j, true)
      end
      note(j.run, 'lost', me .. ' lost ' .. job)
    end
  end
  redis.call('ZREM', 'chainette:lease', me)
  redis.call('SREM', 'chainette:workers', me)
  redis.call('DEL', held_key(me), 'chainette:worker:' .. me)
  lost[#lost + 1] = me
end
return lost
