-- A worker says which units it knows that it holds; others were claimed in a reply that it never saw, or committed
-- before Redis went back. A unit of which Redis knows more parts is one whose reply is on its way.
-- A: incarnation, known = {job = {token of its claim, parts committed}}
local me = need(A.incarnation, 'string', 'incarnation')
for job, entry in pairs(need(A.known, 'table', 'known')) do
  need(job, 'string', 'known'); need(entry, 'table', job); need(entry[1], 'string', job); whole(entry[2], job)
end
local returned = 0
for _, job in ipairs(redis.call('SMEMBERS', held_key(me))) do
  local known, j = A.known[job], job_of(job)
  if not known or known[1] ~= j.claim or (tonumber(j.part) or -1) < known[2] then
    j = in_hand(job, me)
    redis.call('SREM', held_key(me), job)
    if j then drop(job, j, me); put_back(job, j, true); returned = returned + 1 end
  end
end
return returned
