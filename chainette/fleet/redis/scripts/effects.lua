-- The changes that an admission or a commit makes to a root. Needs common.lua before it, and P (prefix), RUN and EPOCH, and BARRED:
-- queues whose units wait for a later phase, with spaces between. ENTRY: the token under which bodies were staged, if any.
local function scope_key(root, scope) return P .. 's:' .. root .. ':' .. scope end
local function fork_key(root, scope) return P .. 'f:' .. root .. ':' .. scope end

-- A string, or {staged = n}: the n-th body that was staged for the entry.
local function body(value, name)
  if type(value) == 'table' and value.staged then whole(value.staged, name) else need(value, 'string', name) end
end

-- Whether every body that was staged is still there.
local function all_there(bodies)
  local seen = {}
  for _, value in ipairs(bodies) do
    local number = type(value) == 'table' and value.staged
    if number and seen[number] then error('chainette: part ' .. number .. ' is named twice') end
    if number and redis.call('EXISTS', stage_key({run = RUN, epoch = EPOCH}, ENTRY, number)) == 0 then return false end
    if number then seen[number] = true end
  end
  return true
end

-- Puts a body where it stays.
local function keep(key, value)
  if type(value) == 'string' then redis.call('SET', key, value); return end
  redis.call('RENAME', stage_key({run = RUN, epoch = EPOCH}, ENTRY, value.staged), key)
  redis.call('PERSIST', key)
end

local function check_effects(effects, root)
  need(effects, 'table', 'effects')
  for _, name in ipairs({'units', 'scopes', 'partials', 'stopped'}) do need(effects[name], 'table', name) end
  local seen = {}
  for _, u in ipairs(effects.units) do
    for _, name in ipairs({'job', 'scope', 'queue', 'data', 'description', 'at'}) do need(u[name], 'string', name) end
    body(u.payload, 'payload')
    need(u.as_admitted, 'boolean', 'as_admitted')
    whole(u.rows, 'rows')
    if seen[u.job] or redis.call('EXISTS', job_key(u.job)) == 1 then error('chainette: unit ' .. u.job .. ' exists already') end
    seen[u.job] = true
  end
  for _, s in ipairs(effects.scopes) do
    for _, name in ipairs({'scope', 'parent', 'job', 'queue', 'data', 'description', 'base', 'at'}) do need(s[name], 'string', name) end
    whole(s.rows, 'rows')
    if redis.call('EXISTS', fork_key(root, s.scope)) == 1 then error('chainette: scope ' .. s.scope .. ' exists already') end
  end
  for _, p in ipairs(effects.partials) do need(p[1], 'string', 'partial scope'); need(p[2], 'string', 'partial') end
  for _, p in ipairs(effects.stopped) do need(p[1], 'string', 'stopped scope'); need(p[2], 'string', 'stopped') end
end

-- Which key is gone that a commit needs: its unit's place in the scope, or the fork to which its rows go; nil if none is.
local function lost_scope(job, root, scope, effects)
  if redis.call('SISMEMBER', scope_key(root, scope), job) == 0 then return 'the members of a scope of root ' .. root .. ' are gone from Redis' end
  local opened = {['']= true}
  for _, s in ipairs(effects.scopes) do opened[s.scope] = true end
  local function is_gone(name)
    if opened[name] then return false end
    opened[name] = true
    return redis.call('HEXISTS', fork_key(root, name), 'job') == 0
  end
  local gone = is_gone(scope)
  for _, p in ipairs(effects.partials) do gone = gone or is_gone(p[1]) end
  for _, p in ipairs(effects.stopped) do gone = gone or is_gone(p[1]) end
  if gone then return 'a fork of root ' .. root .. ' is gone from Redis' end
end

-- Rows of the root that are outstanding, once `weigh` has added its changes; units that wait for a later phase are not
-- among them.
local outstanding, moved = 0, 0

-- Live rows of a root are those it admitted, or those outstanding if rows were expanded. Once for all units of a script.
local function weigh(root, delta)
  delta = delta + moved
  moved = 0
  local admitted = tonumber(redis.call('HGET', P .. 'live', root) or 0)
  local before = tonumber(redis.call('HGET', P .. 'out', root) or 0)
  local after = redis.call('HINCRBY', P .. 'out', root, delta)
  local change = math.max(admitted, after) - math.max(admitted, before)
  outstanding = after
  if change ~= 0 then redis.call('HINCRBY', run_key(RUN), 'live_rows', change) end
end

local function enqueue(u, root, scope, fork)
  redis.call('SADD', scope_key(root, scope), u.job)
  redis.call('HSET', job_key(u.job), 'data', u.data, 'created_at', u.at, 'enqueued_at', u.at, 'origin', u.queue,
    'description', u.description, 'status', 'queued', 'timeout', '-1', 'result_ttl', '0', 'run', RUN, 'epoch', EPOCH,
    'root', root, 'scope', scope, 'fork', fork, 'rows', u.rows, 'strikes', '0', 'part', '0')
  redis.call('RPUSH', 'rq:queue:' .. u.queue, u.job)
  moved = moved + u.rows
end

-- A unit of a later phase is a member of its scope and nothing else: its rows come back out of the log.
local function park(u, root)
  redis.call('SADD', scope_key(root, u.scope), 'P:' .. u.job)
  if type(u.payload) == 'table' then redis.call('DEL', stage_key({run = RUN, epoch = EPOCH}, ENTRY, u.payload.staged)) end
end

local function add(effects, root)
  for _, s in ipairs(effects.scopes) do
    redis.call('SADD', scope_key(root, s.parent), 'S:' .. s.scope)
    redis.call('HSET', fork_key(root, s.scope), 'parent', s.parent, 'job', s.job, 'queue', s.queue, 'data', s.data,
      'description', s.description, 'rows', s.rows, 'at', s.at, 'base', s.base)
  end
  for _, u in ipairs(effects.units) do
    if string.find(' ' .. BARRED .. ' ', ' ' .. u.queue .. ' ', 1, true) then
      park(u, root)
    else
      keep(P .. 'u:' .. u.job, u.payload)
      enqueue(u, root, u.scope, '')
      if u.as_admitted then redis.call('HSET', job_key(u.job), 'as_admitted', '1') end
    end
  end
  for _, p in ipairs(effects.partials) do
    local key = fork_key(root, p[1])
    redis.call('HSET', key, 'p:' .. redis.call('HLEN', key), p[2])
  end
  for _, p in ipairs(effects.stopped) do
    local key = fork_key(root, p[1])
    redis.call('HSET', key, 'x:' .. redis.call('HLEN', key), p[2])
  end
end

-- A scope lost a member: its join unit where it is an empty fork; true where it is the root and empty.
local function settle(root, scope)
  if redis.call('SCARD', scope_key(root, scope)) > 0 then return false end
  if scope == '' then return true end
  local f = redis.call('HMGET', fork_key(root, scope), 'parent', 'job', 'queue', 'data', 'description', 'rows', 'at')
  local join = {job = f[2], queue = f[3], data = f[4], description = f[5], rows = tonumber(f[6]), at = f[7]}
  enqueue(join, root, f[1], scope)
  redis.call('SREM', scope_key(root, f[1]), 'S:' .. scope)
  return false
end

-- How far a root is: 0 has units, 1 is done, 2 has none but those of a later phase.
local function stage_of(done)
  if done then return 1 end
  return outstanding > 0 and 0 or 2
end

-- A root that has none but units of a later phase goes when the sink has made its last entry durable.
local function suspend(root, entry)
  redis.call('RPUSH', P .. 'parked', entry .. ' ' .. root)
  redis.call('HINCRBY', run_key(RUN), 'suspended', 1)
end
