-- The next units that this worker can serve. A: incarnation, token, alone (it holds nothing), ahead (work on it begins
-- later, by start.lua), at, limit (bytes of one unit), light (bytes of those behind the first), queues = {{run, queue, room}, ...}
-- in order: the first unit comes whatever its size, those behind it come too as long as all have `room` rows at most.
-- DRAIN, queue: a unit waits there that must run alone; finish what is in hand first.
local me, token = need(A.incarnation, 'string', 'incarnation'), need(A.token, 'string', 'token')
need(A.queues, 'table', 'queues'); need(A.at, 'string', 'at'); whole(A.limit, 'limit'); whole(A.light, 'light')
pairs_of(A.queues, 'queues')
for _, entry in ipairs(A.queues) do whole(entry[3], 'room') end
if not redis.call('ZSCORE', 'chainette:lease', me) then return {'LOST'} end

local function starts(text, head) return string.sub(text, 1, #head) == head end

-- Why a queued id is no unit of this run; nil where it is one.
local function foreign(job, j, run, queue)
  if not string.match(job, '^[%w_-]+$') then return 'its id is none of ours' end
  if j.run ~= run then return 'it is not of run ' .. run end
  if j.origin ~= queue then return 'it is of another queue' end
  if not (tonumber(j.root) and tonumber(j.rows) and j.scope and j.fork) then return 'it does not say which unit it is' end
end

local function payload_of(P, job, j)
  if not tonumber(j.part) then return nil, 'its counter of parts is gone' end
  if j.fork ~= '' then return redis.pcall('HGETALL', P .. 'f:' .. j.root .. ':' .. j.fork) end
  local size = redis.pcall('STRLEN', P .. 'u:' .. job)
  if type(size) ~= 'number' then return nil, 'its payload is no string' end
  if size > A.limit then return nil, 'its payload has ' .. size .. ' bytes; at most ' .. A.limit .. ' are decoded' end
  return redis.call('GET', P .. 'u:' .. job), 'its payload is gone'
end

-- A job out of a queue; nil where it is stale, or had to be buried.
local function take(job, run, epoch, queue, kind, status, token)
  local P, j = prefix_of(run, epoch), job_of(job)
  if not j.run and redis.call('EXISTS', job_key(job)) == 0 then
    if starts(job, run .. '_' .. epoch .. '_') then damage(run, 'unit ' .. job .. ' is gone from Redis') end
    if not starts(job, run .. '_') then bury(job, queue, run, me, 'there is no such job') end
    return nil
  end
  local why = foreign(job, j, run, queue)
  if why then bury(job, queue, run, me, why); return nil end
  if j.status ~= status or j.epoch ~= epoch then return nil end
  local data = redis.call('HGET', job_key(job), 'data') or ''
  local payload, lost = payload_of(P, job, j)
  if payload and payload.err then payload, lost = nil, payload.err end
  if not payload then
    bury(job, queue, run, me, lost)
    if redis.call('SISMEMBER', P .. 's:' .. j.root .. ':' .. j.scope, job) == 1 then damage(run, 'unit ' .. job .. ': ' .. lost) end
    return nil
  end
  local taken = j.part == '0' and {} or redis.pcall('SMEMBERS', taken_key(j, job))
  if taken.err then taken = {} end -- then there are too many rows, which its worker sees
  redis.call('HSET', job_key(job), 'status', 'started', 'claim', token, 'worker_name', me, 'started_at', A.at,
    'ahead', A.ahead and kind == 'JOB' and '1' or '')
  redis.call('SADD', held_key(me), job)
  redis.call('ZADD', wip_key(queue), '+inf', execution(job, token))
  local since = redis.call('HGET', job_key(job), 'enqueued_at') or ''
  return {kind, job, token, run, epoch, since, j.part, taken, j.root, j.scope, j.fork, j.rows, #data > 65536 and '' or data, payload}
end

local function payload_size(unit) return type(unit[14]) == 'string' and #unit[14] or 0 end

-- Whether a unit may come with those before it.
local function fits(job, P, room, light)
  local j = redis.pcall('HMGET', job_key(job), 'rows', 'fork')
  if j.err or (tonumber(j[1]) or 0) > room then return false end
  local size = j[2] == '' and redis.pcall('STRLEN', P .. 'u:' .. job) or 0
  return type(size) == 'number' and size <= light
end

for _, entry in ipairs(A.queues) do
  local run, queue = entry[1], 'rq:queue:' .. entry[2]
  local state = redis.call('HMGET', run_key(run), 'state', 'epoch')
  if state[1] == 'running' then
    local P = prefix_of(run, state[2])
    for _, job in ipairs(redis.call('ZRANGEBYSCORE', 'rq:scheduled:' .. entry[2], '-inf', now(), 'LIMIT', 0, 16)) do
      redis.call('ZREM', 'rq:scheduled:' .. entry[2], job)
      local j = job_of(job)
      if not j.run and starts(job, run .. '_' .. state[2] .. '_') then damage(run, 'unit ' .. job .. ' is gone from Redis') end
      if j.status == 'scheduled' and not foreign(job, j, run, entry[2]) and j.epoch == state[2] then put_back(job, j, true) end
    end
    local broken = redis.call('LPOP', P .. 'broken:' .. entry[2])
    local mend = broken and take(broken, run, state[2], entry[2], 'MEND', 'broken', token)
    if mend then return {'OK', mend} end
    if redis.call('LLEN', P .. 'solo:' .. entry[2]) > 0 then
      local turn = P .. 'turn:' .. entry[2]
      local holder = redis.call('GET', turn)
      if not holder or holder == me or not redis.call('ZSCORE', 'chainette:lease', holder) then
        redis.call('SET', turn, me, 'EX', 30)
        if A.ahead or not A.alone then return {'DRAIN', entry[2]} end
        local solo = take(redis.call('LPOP', P .. 'solo:' .. entry[2]), run, state[2], entry[2], 'SOLO', 'queued', token)
        if solo then return {'OK', solo} end
      end
    end
    local found, room, light = {'OK'}, entry[3], A.light
    for _ = 1, 64 do
      local job = (#found == 1 or room > 0) and redis.call('LINDEX', queue, 0)
      if not job or (#found > 1 and not fits(job, P, room, light)) then break end
      redis.call('LPOP', queue)
      local unit = take(job, run, state[2], entry[2], 'JOB', 'queued', #found == 1 and token or token .. '.' .. #found - 1)
      if unit then
        found[#found + 1] = unit
        room, light = room - tonumber(unit[12]), light - payload_size(unit)
      end
    end
    if #found > 1 then return found end
  end
end
return {'OK'}
