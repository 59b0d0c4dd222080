-- The next units that this worker can serve. A: incarnation, token, alone (it holds nothing), ahead (work on it begins
-- later, by start.lua), at, limit (bytes of one unit), light (bytes of those after the first), queues = {{run, queue, room}, ...}
-- in order: the first unit comes whatever its size, those after it come too as long as all have `room` rows at most. Those of one
-- root and scope become one unit, as far as the run's batch_size allows.
-- DRAIN, queue: a unit waits there that must run alone; finish the units in hand first.
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
  local payloads, bytes, keys = {}, 0, payload_keys(j, job)
  if j.as_admitted then keys[#keys + 1] = P .. 'r:' .. j.root end -- its rows are those of the root's record
  for _, key in ipairs(keys) do
    local size = redis.pcall('STRLEN', key)
    if type(size) ~= 'number' then return nil, 'its payload is no string' end
    bytes = bytes + size
    if bytes > A.limit then return nil, 'its payload has ' .. bytes .. ' bytes; at most ' .. A.limit .. ' are decoded' end
    local payload = redis.call('GET', key)
    if not payload then return nil, 'its payload is gone' end
    payloads[#payloads + 1] = payload
  end
  return payloads
end

-- A job out of a queue as a unit; nil if it is stale, or had to be buried.
local function open(job, run, epoch, queue, status)
  local P, j = prefix_of(run, epoch), job_of(job)
  if not j.run and redis.call('EXISTS', job_key(job)) == 0 then
    if starts(job, run .. '_' .. epoch .. '_') then damage(run, 'unit ' .. job .. ' is gone from Redis') end
    if not starts(job, run .. '_') then bury(job, queue, run, me, 'there is no such job') end
    return nil
  end
  local why = foreign(job, j, run, queue)
  if why then bury(job, queue, run, me, why); return nil end
  if j.status ~= status or j.epoch ~= epoch then return nil end
  local payload, lost = payload_of(P, job, j)
  if payload and payload.err then payload, lost = nil, payload.err end
  if not payload then
    bury(job, queue, run, me, lost)
    if redis.call('SISMEMBER', P .. 's:' .. j.root .. ':' .. j.scope, job) == 1 then damage(run, 'unit ' .. job .. ': ' .. lost) end
    return nil
  end
  return {job = job, j = j, payload = payload}
end

local function hand_out(unit, queue, kind, token)
  local job, j = unit.job, unit.j
  local words = redis.call('HMGET', job_key(job), 'data', 'enqueued_at', 'unfinished', 'begun')
  local data, since, unfinished, begun = words[1] or '', words[2] or '', words[3] or '', words[4] or ''
  local taken = j.part == '0' and {} or redis.pcall('SMEMBERS', taken_key(j, job))
  if taken.err then taken = {} end -- then there are too many rows, which its worker sees
  redis.call('HSET', job_key(job), 'status', 'started', 'claim', token, 'worker_name', me, 'started_at', A.at,
    'ahead', A.ahead and kind == 'JOB' and '1' or '')
  redis.call('SADD', held_key(me), job)
  redis.call('ZADD', wip_key(queue), '+inf', execution(job, token))
  return {kind, job, token, j.run, j.epoch, since, j.part, taken, j.root, j.scope, j.fork, tostring(j.rows), #data > 65536 and '' or data,
    unit.payload, j.also or '', kind == 'MEND' and #begun <= 4096 and begun or '', #unfinished <= A.light and unfinished or ''}
end

-- A unit becomes one with another of the same root and scope: fragments grow together again. False if it cannot.
local function is_whole(j) return j.fork == '' and j.part == '0' and j.strikes == '0' and not j.as_admitted end
local function absorb(unit, other, most)
  local j, k = unit.j, other.j
  if j.root ~= k.root or j.scope ~= k.scope or not is_whole(j) or not is_whole(k) or j.rows + k.rows > most then return false end
  if has_unfinished(unit.job) or has_unfinished(other.job) then return false end
  for _, payload in ipairs(other.payload) do unit.payload[#unit.payload + 1] = payload end
  j.rows, j.also = j.rows + k.rows, (j.also or '') .. ' ' .. other.job .. ' ' .. (k.also or '')
  redis.call('HSET', job_key(unit.job), 'rows', j.rows, 'also', j.also)
  redis.call('SREM', prefix_of(j.run, j.epoch) .. 's:' .. j.root .. ':' .. j.scope, other.job)
  redis.call('DEL', job_key(other.job))
  return true
end

local function bytes_of(unit)
  local sum = 0
  for _, payload in ipairs(unit.payload) do sum = sum + #payload end
  return sum
end

-- Whether a unit may come with those before it.
local function fits(job, P, room, light)
  local j = redis.pcall('HMGET', job_key(job), 'rows', 'fork', 'as_admitted', 'root')
  if j.err or (tonumber(j[1]) or 0) > room then return false end
  local size = j[2] == '' and redis.pcall('STRLEN', P .. (j[3] and 'r:' .. (j[4] or '') or 'u:' .. job)) or 0
  return type(size) == 'number' and size <= light
end

-- The first unit of a queue, and the following ones that fit.
local function ready(P, run, epoch, queue, room, most)
  local units, light, jobs = {}, A.light, 'rq:queue:' .. queue
  for _ = 1, 64 do
    local ahead = #units > 0 and room > 0 and redis.call('LINDEX', jobs, 0)
    if #units > 0 and not (ahead and fits(ahead, P, room, light)) then break end
    local job = redis.call('LPOP', jobs)
    if not job then break end
    local unit = open(job, run, epoch, queue, 'queued')
    if unit then
      room, light = room - unit.j.rows, light - bytes_of(unit)
      if #units == 0 or not absorb(units[#units], unit, most) then units[#units + 1] = unit end
    end
  end
  return units
end

local states = {}
local function state_of(run)
  states[run] = states[run] or redis.call('HMGET', run_key(run), 'state', 'epoch', 'batch_size', 'exhausted')
  return states[run]
end

local function is_empty(P, queue)
  local kinds = {'rq:queue:' .. queue, 'rq:scheduled:' .. queue, P .. 'solo:' .. queue, P .. 'broken:' .. queue}
  return redis.call('EXISTS', unpack(kinds)) == 0
end

for _, entry in ipairs(A.queues) do
  local run, queue = entry[1], entry[2]
  local state = state_of(run)
  local P = prefix_of(run, state[2] or '')
  if state[1] == 'running' and not state[4] and not is_empty(P, queue) then
    for _, job in ipairs(redis.call('ZRANGEBYSCORE', 'rq:scheduled:' .. queue, '-inf', now(), 'LIMIT', 0, 16)) do
      redis.call('ZREM', 'rq:scheduled:' .. queue, job)
      local j = job_of(job)
      if not j.run and starts(job, run .. '_' .. state[2] .. '_') then damage(run, 'unit ' .. job .. ' is gone from Redis') end
      if j.status == 'scheduled' and not foreign(job, j, run, queue) and j.epoch == state[2] then put_back(job, j, not has_unfinished(job)) end
    end
    local broken = redis.call('LPOP', P .. 'broken:' .. queue)
    local mend = broken and open(broken, run, state[2], queue, 'broken')
    if mend then return {'OK', hand_out(mend, queue, 'MEND', token)} end
    if redis.call('LLEN', P .. 'solo:' .. queue) > 0 then
      local turn = P .. 'turn:' .. queue
      local holder = redis.call('GET', turn)
      if not holder or holder == me or not redis.call('ZSCORE', 'chainette:lease', holder) then
        redis.call('SET', turn, me, 'EX', 30)
        if A.ahead or not A.alone then return {'DRAIN', queue} end
        local solo = open(redis.call('LPOP', P .. 'solo:' .. queue), run, state[2], queue, 'queued')
        if solo then return {'OK', hand_out(solo, queue, 'SOLO', token)} end
      end
    end
    local found = {'OK'}
    for i, unit in ipairs(ready(P, run, state[2], queue, entry[3], tonumber(state[3]) or 0)) do
      found[i + 1] = hand_out(unit, queue, 'JOB', i == 1 and token or token .. '.' .. i - 1)
    end
    if #found > 1 then return found end
  end
end
return {'OK'}
