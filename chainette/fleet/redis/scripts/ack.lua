-- The sink has made everything up to an entry durable: finished roots go, the stream is trimmed to that entry.
-- Roots that wait for a later phase go by themselves, once their last entry is durable. A: run, epoch, owner, id, token, roots
local RUN, EPOCH = need(A.run, 'string', 'run'), whole(A.epoch, 'epoch')
local P = prefix_of(RUN, EPOCH)
need(A.owner, 'string', 'owner'); need(A.id, 'string', 'id'); need(A.token, 'string', 'token'); need(A.roots, 'table', 'roots')
for _, root in ipairs(A.roots) do whole(root, 'root') end
local run = redis.call('HMGET', run_key(RUN), 'epoch', 'owner')
if tonumber(run[1] or -1) ~= EPOCH or run[2] ~= A.owner then return 'LOST' end
local entry = redis.call('XRANGE', P .. 'stream', A.id, A.id)[1]
if not entry or entry[2][2] ~= A.token then return 'LOST' end
local function scope_keys(root, scope) return P .. 's:' .. root .. ':' .. scope, P .. 'f:' .. root .. ':' .. scope end

local function forget_scope(root, scope)
  local members, fork = scope_keys(root, scope)
  for _, member in ipairs(redis.call('SMEMBERS', members)) do
    if string.sub(member, 1, 2) == 'S:' then forget_scope(root, string.sub(member, 3)) end
  end
  redis.call('DEL', members, fork)
end

local function forget(root)
  local admitted = tonumber(redis.call('HGET', P .. 'live', root) or 0)
  local outstanding = tonumber(redis.call('HGET', P .. 'out', root) or 0)
  redis.call('HINCRBY', run_key(RUN), 'live_rows', 0 - math.max(admitted, outstanding)) -- "-0" is no number to Redis 7
  redis.call('HINCRBY', run_key(RUN), 'live_bytes', 0 - redis.call('STRLEN', P .. 'r:' .. root))
  redis.call('HDEL', P .. 'live', root)
  redis.call('HDEL', P .. 'out', root)
  redis.call('DEL', P .. 'r:' .. root)
  forget_scope(root, '')
end

-- Removes durable items from a list in the order of the stream, `<entry> <word>`.
local function at(id) return tonumber(string.match(id, '^%d+')), tonumber(string.match(id, '-(%d+)')) end
local ms, seq = at(A.id)
local function durable(list, use)
  while true do
    local found = redis.call('LINDEX', P .. list, 0)
    if not found then break end
    local its_ms, its_seq = at(found)
    if its_ms > ms or (its_ms == ms and its_seq > seq) then break end
    use(string.match(found, ' (.*)$'))
    redis.call('LPOP', P .. list)
  end
end

for _, root in ipairs(A.roots) do forget(root) end
durable('parked', forget)
durable('apart', function(token) redis.call('DEL', P .. 'e:' .. token) end)
redis.call('XTRIM', P .. 'stream', 'MINID', A.id)
return 'OK'
