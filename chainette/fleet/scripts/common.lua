-- Shared by every script. ARGV[1] is one msgpack map, in which {blob = n} stands for ARGV[n]: cmsgpack knows no
-- binary type. What is wrong with the map is found before the first write, because a script that fails half-way
-- keeps what it wrote.
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

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end

local function run_key(run) return 'chainette:run:' .. run end
local function prefix_of(run, epoch) return 'chainette:' .. run .. ':' .. epoch .. ':' end
local function job_key(job) return 'rq:job:' .. job end
local function held_key(incarnation) return 'chainette:held:' .. incarnation end

-- The fields of a job hash as a table.
local function job_of(job)
  local names = {'run', 'epoch', 'root', 'scope', 'fork', 'claim', 'strikes', 'rows', 'origin', 'status', 'solo'}
  local values = redis.call('HMGET', job_key(job), unpack(names))
  local found = {}
  for i, name in ipairs(names) do found[name] = values[i] end
  return found
end

-- Whether a claim still holds: this token, this epoch, and a run that was not taken away.
local function holds(job, token)
  local j = job_of(job)
  if not j.run or j.claim ~= token then return nil end
  local run = redis.call('HMGET', run_key(j.run), 'epoch', 'state')
  if run[1] ~= j.epoch or run[2] == 'cancelled' then return nil end
  return j
end

-- Units that run alone, and units that killed a worker while they did.
local function solo_key(j) return prefix_of(j.run, j.epoch) .. 'solo:' .. j.origin end
local function broken_key(j) return prefix_of(j.run, j.epoch) .. 'broken:' .. j.origin end

local function put_back(job, j, front)
  redis.call('HSET', job_key(job), 'status', 'queued')
  redis.call('HDEL', job_key(job), 'claim')
  redis.call(front and 'LPUSH' or 'RPUSH', j.solo == '1' and solo_key(j) or 'rq:queue:' .. j.origin, job)
end

local function note(run, kind, text)
  redis.call('XADD', 'chainette:run:' .. run .. ':notes', 'MAXLEN', '~', 10000, '*', 'kind', kind, 'text', text)
end
