-- Shared by every script. ARGV[1] is one msgpack map, in which {blob = n} stands for ARGV[n]: cmsgpack knows no
-- binary type. The map is checked before the first write, because a script that fails half-way
-- keeps its writes.
local function with_blobs(value)
  if type(value) ~= 'table' then return value end
  if value.blob then return ARGV[value.blob] end
  for name, part in pairs(value) do value[name] = with_blobs(part) end
  return value
end

if #ARGV == 0 then error('chainette: no arguments') end
local A = with_blobs(cmsgpack.unpack(ARGV[1]))
if type(A) ~= 'table' then error('chainette: the arguments are not a map') end

local function need(value, kind, name)
  if type(value) ~= kind then error('chainette: ' .. name .. ' must be a ' .. kind .. ', got ' .. type(value)) end
  return value
end

local function strings(list, name)
  for _, value in ipairs(need(list, 'table', name)) do need(value, 'string', name) end
  return list
end

-- {{run, queue, ...}, ...}
local function pairs_of(list, name)
  for _, entry in ipairs(need(list, 'table', name)) do
    need(entry, 'table', name); need(entry[1], 'string', 'run'); need(entry[2], 'string', 'queue')
  end
  return list
end

-- Values that a hash takes, by name.
local function scalars(map, name)
  for key, value in pairs(need(map, 'table', name)) do
    need(key, 'string', name)
    if type(value) ~= 'string' then need(value, 'number', name .. ' ' .. key) end
  end
  return map
end

-- A whole number, in which a double is exact.
local function whole(value, name)
  if need(value, 'number', name) ~= math.floor(value) or math.abs(value) > 2^53 then error('chainette: ' .. name .. ' is ' .. value) end
  return value
end

-- Seconds: not NaN, not for ever.
local function seconds(value, name)
  if not (need(value, 'number', name) >= 0 and value < 86400) then error('chainette: ' .. name .. ' is ' .. value) end
  return value
end

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end

local function run_key(run) return 'chainette:run:' .. run end
-- Keys that workers may not write (deploy/redis/users.acl): the order to services, and the word that a run is cancelled.
local function order_key(run) return 'chainette:order:' .. run end
local function cancel_key(run) return 'chainette:order:' .. run .. ':cancel' end

local function write_fields(run, fields)
  for name, value in pairs(fields) do
    if name == 'order' then redis.call('SET', order_key(run), value) else redis.call('HSET', run_key(run), name, value) end
  end
end

local function prefix_of(run, epoch) return 'chainette:' .. run .. ':' .. epoch .. ':' end
local function job_key(job) return 'rq:job:' .. job end
local function stage_key(j, entry, number) return prefix_of(j.run, j.epoch) .. 'stage:' .. entry .. ':' .. number end
local function taken_key(j, job) return prefix_of(j.run, j.epoch) .. 't:' .. job end
-- The payloads of a unit: its own, and those of units that became one with it.
local function payload_keys(j, job)
  local keys = {prefix_of(j.run, j.epoch) .. 'u:' .. job}
  for other in string.gmatch(j.also or '', '%S+') do keys[#keys + 1] = prefix_of(j.run, j.epoch) .. 'u:' .. other end
  return keys
end
local function held_key(incarnation) return 'chainette:held:' .. incarnation end

-- The fields of a job hash as a table.
local function job_of(job)
  local names = {'run', 'epoch', 'root', 'scope', 'fork', 'claim', 'strikes', 'rows', 'origin', 'status', 'solo', 'worker_name',
    'ahead', 'deaths', 'part', 'done', 'also', 'as_admitted'}
  local values = redis.pcall('HMGET', job_key(job), unpack(names))
  local found = {}
  if values.err then return found end -- no hash at all
  for i, name in ipairs(names) do found[name] = values[i] end
  return found
end

-- Whether a claim still holds: this token, this epoch, and a run that was not taken away.
local function holds(job, token, j)
  j = j or job_of(job)
  if not j.run or token == '' or j.claim ~= token then return nil end
  local run = redis.call('HMGET', run_key(j.run), 'epoch', 'state', 'barred')
  if run[1] ~= j.epoch or run[2] == 'cancelled' then return nil end
  j.barred = run[3] or ''
  return j
end

-- A unit that a worker holds in the run's current epoch; nil where there is nothing to put back.
local function in_hand(job, me)
  local j = job_of(job)
  if j.status ~= 'started' or j.worker_name ~= me or not j.run then return nil end
  if redis.call('HGET', run_key(j.run), 'epoch') ~= j.epoch then return nil end
  return j
end

-- The entry that RQ shows as started: for ever, so that no cleanup of RQ's takes it for abandoned.
local function wip_key(queue) return 'rq:wip:' .. queue end
local function execution(job, token) return job .. ':' .. token end

-- A unit whose claim holds leaves the worker's hands.
local function drop(job, j, me)
  redis.call('SREM', held_key(me), job)
  redis.call('ZREM', wip_key(j.origin), execution(job, j.claim))
end

-- The work already spent on the rows of a unit, as its worker says; it stays with the unit. Nobody needs it: a row's failures are only
-- counted on, and its answers asked for again.
local function leave_unfinished(job, unfinished)
  if unfinished == '' then redis.call('HDEL', job_key(job), 'unfinished') else redis.call('HSET', job_key(job), 'unfinished', unfinished) end
end
local function has_unfinished(job) return redis.call('HEXISTS', job_key(job), 'unfinished') == 1 end

-- Units that run alone, and units that killed a worker while they did.
local function solo_key(j) return prefix_of(j.run, j.epoch) .. 'solo:' .. j.origin end
local function broken_key(j) return prefix_of(j.run, j.epoch) .. 'broken:' .. j.origin end

local function put_back(job, j, front)
  redis.call('HSET', job_key(job), 'status', 'queued', 'claim', '', 'ahead', '')
  redis.call(front and 'LPUSH' or 'RPUSH', j.solo == '1' and solo_key(j) or 'rq:queue:' .. j.origin, job)
end

local function note(run, kind, text)
  local state = redis.call('HGET', run_key(run), 'state')
  if not state or state == 'cancelled' then return end -- it was closed; nobody would ever delete the note
  redis.call('XADD', 'chainette:run:' .. run .. ':notes', 'MAXLEN', '~', 10000, '*', 'kind', kind, 'text', text)
end

-- A job that cannot be taken goes where RQ's tools show failed ones, until the run is closed.
local function bury(job, queue, run, me, reason)
  local key = job_key(job)
  if redis.call('TYPE', key).ok == 'hash' then
    redis.call('HSET', key, 'status', 'failed', 'exc_info', reason, 'claim', '')
  end
  redis.call('EXPIRE', key, 86400)
  redis.call('ZADD', 'rq:failed:' .. queue, math.floor(now()) + 86400, job)
  note(run, 'buried', me .. ' buried job ' .. string.gsub(string.sub(job, 1, 200), '[^%w%p]', '?') .. ' of queue ' .. queue .. ': ' .. reason)
end

-- A unit of the run itself is gone; its rows come back with the next epoch, which the sink begins when it sees this.
local function damage(run, reason)
  if redis.call('EXISTS', run_key(run)) == 1 then redis.call('HSET', run_key(run), 'damaged', reason) end
end

-- Whether `part` is the next part of a unit whose claim holds. Else nothing may be written: an old call comes late, or Redis
-- went back. A counter that is gone is damage.
local function is_next(job, j, part)
  if not tonumber(j.part) then damage(j.run, 'unit ' .. job .. ': its counter of parts is gone from Redis') end
  return tonumber(j.part) == part
end

-- A claim that is over leaves the worker's hands, unless the worker has claimed the same unit again since. Where its scope
-- still names a unit whose job is gone, it was lost and not committed.
local function let_go(job, token, me, scope)
  local claim = redis.call('HMGET', job_key(job), 'claim', 'worker_name')
  if not claim[1] or claim[1] == token or claim[2] ~= me then redis.call('SREM', held_key(me), job) end
  local run, epoch, root = string.match(job, '^(.*)_(%d+)_(%d+)_%x+$')
  if claim[1] or not run or redis.call('HGET', run_key(run), 'epoch') ~= epoch then return end
  if redis.call('SISMEMBER', prefix_of(run, epoch) .. 's:' .. root .. ':' .. scope, job) == 1 then
    damage(run, 'unit ' .. job .. ' is gone from Redis')
  end
end

-- RQ's own records of a queue besides its jobs.
local function forget_queue(queue)
  for _, job in ipairs(redis.call('ZRANGE', 'rq:failed:' .. queue, 0, -1)) do redis.call('DEL', job_key(job)) end
  redis.call('DEL', 'rq:queue:' .. queue, 'rq:failed:' .. queue, 'rq:scheduled:' .. queue, wip_key(queue))
end

-- The amounts of a budget, and their words; {} if the text has none.
local function amounts_of(text)
  local list = {}
  for word in string.gmatch(tostring(text or ''), '%d+') do list[#list + 1] = tonumber(word) end
  return #list == 4 and list or {}
end
local function added(some, others, factor)
  local list = {}
  for i = 1, 4 do list[i] = math.max(0, (some[i] or 0) + (factor or 1) * (others[i] or 0)) end
  return list
end
local function amount_words(list) return string.format('%.0f %.0f %.0f %.0f', unpack(list)) end
-- Hash: digest of an engine with a budget -> what closed runs have spent. Workers may not write it.
local CLOSED = 'chainette:spent'

local function split_words(text)
  local words = {}
  for word in string.gmatch(text or '', '[^, ]+') do words[#words + 1] = word end
  return words
end
