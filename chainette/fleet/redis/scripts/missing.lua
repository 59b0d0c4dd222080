-- Outstanding work of live roots that can never be claimed, since the key that named it is gone; "" if there is none.
-- A: run, epoch, roots
local RUN, EPOCH = need(A.run, 'string', 'run'), whole(A.epoch, 'epoch')
need(A.roots, 'table', 'roots')
for _, root in ipairs(A.roots) do whole(root, 'root') end
local P = prefix_of(RUN, EPOCH)
local run = redis.call('HMGET', run_key(RUN), 'epoch', 'queues')
if tonumber(run[1] or -1) ~= EPOCH then return '' end

local waits = {}
local function all_wait(jobs)
  for _, job in ipairs(jobs) do waits[job] = true end
end
for _, queue in ipairs(split_words(run[2])) do
  all_wait(redis.call('LRANGE', 'rq:queue:' .. queue, 0, -1))
  all_wait(redis.call('LRANGE', P .. 'solo:' .. queue, 0, -1))
  all_wait(redis.call('LRANGE', P .. 'broken:' .. queue, 0, -1))
  all_wait(redis.call('ZRANGE', 'rq:scheduled:' .. queue, 0, -1))
end

local function why_lost(job)
  local j = job_of(job)
  if not j.run then return 'unit ' .. job .. ' is gone from Redis' end
  if j.status ~= 'started' then return 'unit ' .. job .. ' is in no queue' end
  local lives = redis.call('ZSCORE', 'chainette:lease', j.worker_name)
  if not lives or redis.call('SISMEMBER', held_key(j.worker_name), job) == 0 then
    return 'unit ' .. job .. ' is in the hands of no live worker'
  end
end

local units = 0
local function search(root, scope)
  local members = redis.call('SMEMBERS', P .. 's:' .. root .. ':' .. scope)
  if #members == 0 then return 'root ' .. root .. ': its outstanding rows are gone from Redis' end
  for _, member in ipairs(members) do
    local kind, found = string.sub(member, 1, 2), nil
    if kind == 'S:' then
      found = search(root, string.sub(member, 3))
    elseif kind ~= 'P:' then
      units = units + 1
      found = not waits[member] and why_lost(member)
    end
    if found then return found end
  end
end

for _, root in ipairs(A.roots) do
  units = 0
  local found = search(root, '')
  if found then return found end
  if units == 0 then return 'root ' .. root .. ' waits for a later phase and was not let go' end
end
return ''
