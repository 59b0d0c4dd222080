-- A new epoch: older claims and commits are refused from here on; roots that are not durable will be admitted again.
-- A: run, epoch, owner, token (of the anchor), queues, fields (of the run, for workers)
local key = run_key(need(A.run, 'string', 'run'))
whole(A.epoch, 'epoch'); need(A.owner, 'string', 'owner'); need(A.token, 'string', 'token')
strings(A.queues, 'queues'); scalars(A.fields, 'fields'); whole(A.fields.window, 'window')
if redis.call('HGET', key, 'state') == 'cancelled' then return {'CANCELLED'} end
local stream = prefix_of(A.run, A.epoch) .. 'stream'
local found = redis.call('HGET', key, 'epoch')
local known = found and #found < 16 and string.match(found, '^%d+$') and tonumber(found) or -1
if known >= A.epoch + 2^20 then known = -1 end -- garbage, as in FleetQueue.latest_epoch
if known == A.epoch and redis.call('HGET', key, 'owner') == A.owner then
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if first and first[2][2] == A.token then return {'OK', A.epoch} end -- the same call, repeated after a lost reply
end
if known >= A.epoch then return {'BEHIND', known} end
for _, queue in ipairs(split_words(redis.call('HGET', key, 'queues'))) do -- of the epoch before, whose chain may have been another
  forget_queue(queue)
  redis.call('SREM', 'rq:queues', 'rq:queue:' .. queue)
end
for _, queue in ipairs(A.queues) do
  forget_queue(queue)
  redis.call('SADD', 'rq:queues', 'rq:queue:' .. queue)
end
redis.call('HDEL', key, 'total', 'last', 'damaged', 'barred', 'suspended', 'budget', 'exhausted', 'exhausted_by', 'needed')
for _, name in ipairs(redis.call('HKEYS', key)) do
  if string.sub(name, 1, 9) == 'reserved:' then redis.call('HDEL', key, name) end
end
-- of the budgets of the run and of its engines, what was reserved stays spent; the log may know more, if Redis went back
for name, words in pairs(A.fields) do
  if name == 'used' or string.sub(name, 1, 5) == 'used:' then
    local used, before, engine = amounts_of(words), amounts_of(redis.call('HGET', key, name)), string.sub(name, 6)
    if engine ~= '' and not found and A.epoch > 0 then -- it was closed before, and counts among the live ones again
      local closed = amounts_of(redis.call('HGET', CLOSED, engine))
      if #closed == 4 then redis.call('HSET', CLOSED, engine, amount_words(added(closed, used, -1))) end
    end
    for i = 1, 4 do used[i] = math.max(used[i] or 0, before[i] or 0) end
    A.fields[name] = amount_words(used)
  end
end
write_fields(A.run, A.fields)
redis.call('HSET', key, 'epoch', A.epoch, 'owner', A.owner, 'cursor', 0, 'live_rows', 0, 'live_bytes', 0, 'results', 0, 'queues', table.concat(A.queues, ' '))
if redis.call('HGET', key, 'state') ~= 'paused' then redis.call('HSET', key, 'state', 'running') end
redis.call('SADD', 'chainette:runs', A.run)
redis.call('DEL', stream)
redis.call('XADD', stream, '0-1', 't', A.token)
return {'OK', A.epoch}
