-- A worker says which units it knows that it holds; others were claimed in a reply that it never saw, or committed
-- before Redis went back.
-- A: incarnation, known (job -> token of its claim)
local me = need(A.incarnation, 'string', 'incarnation')
scalars(A.known, 'known')
local returned = 0
for _, job in ipairs(redis.call('SMEMBERS', held_key(me))) do
  if not A.known[job] or A.known[job] ~= redis.call('HGET', job_key(job), 'claim') then
    local j = in_hand(job, me)
    redis.call('SREM', held_key(me), job)
    if j then drop(job, j, me); put_back(job, j, true); returned = returned + 1 end
  end
end
return returned
