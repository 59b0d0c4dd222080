-- A worker says which units it knows that it holds; others were claimed in a reply that it never saw.
-- A: incarnation, known
local me = need(A.incarnation, 'string', 'incarnation')
local known = {}
for _, job in ipairs(need(A.known, 'table', 'known')) do known[job] = true end
local returned = 0
for _, job in ipairs(redis.call('SMEMBERS', held_key(me))) do
  if not known[job] then
    local j = job_of(job)
    redis.call('SREM', held_key(me), job)
    if j.run and j.status == 'started' then put_back(job, j, true); returned = returned + 1 end
  end
end
return returned
