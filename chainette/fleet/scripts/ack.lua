-- The sink has made everything up to an entry durable: finished roots go, the stream is trimmed to that entry.
-- A: run, epoch, owner, id, token, roots
local RUN, EPOCH = need(A.run, 'string', 'run'), whole(A.epoch, 'epoch')
local P = prefix_of(RUN, EPOCH)
need(A.owner, 'string', 'owner'); need(A.id, 'string', 'id'); need(A.token, 'string', 'token'); need(A.roots, 'table', 'roots')
for _, root in ipairs(A.roots) do whole(root, 'root') end
local run = redis.call('HMGET', run_key(RUN), 'epoch', 'owner')
if tonumber(run[1] or -1) ~= EPOCH or run[2] ~= A.owner then return 'LOST' end
local entry = redis.call('XRANGE', P .. 'stream', A.id, A.id)[1]
if not entry or entry[2][2] ~= A.token then return 'LOST' end
for _, root in ipairs(A.roots) do
  local admitted = tonumber(redis.call('HGET', P .. 'live', root) or 0)
  local outstanding = tonumber(redis.call('HGET', P .. 'out', root) or 0)
  redis.call('HINCRBY', run_key(RUN), 'live_rows', -math.max(admitted, outstanding))
  redis.call('HINCRBY', run_key(RUN), 'live_bytes', -redis.call('STRLEN', P .. 'r:' .. root))
  redis.call('HDEL', P .. 'live', root)
  redis.call('HDEL', P .. 'out', root)
  redis.call('DEL', P .. 'r:' .. root, P .. 's:' .. root .. ':')
end
-- bodies of entries that lie apart, in the order of the stream
local function at(id) return tonumber(string.match(id, '^%d+')), tonumber(string.match(id, '-(%d+)')) end
local ms, seq = at(A.id)
while true do
  local apart = redis.call('LINDEX', P .. 'apart', 0)
  if not apart then break end
  local its_ms, its_seq = at(apart)
  if its_ms > ms or (its_ms == ms and its_seq > seq) then break end
  redis.call('DEL', P .. 'e:' .. string.match(apart, ' (.*)$'))
  redis.call('LPOP', P .. 'apart')
end
redis.call('XTRIM', P .. 'stream', 'MINID', A.id)
return 'OK'
