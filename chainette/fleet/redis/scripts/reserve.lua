-- Reserves requests of a run to an engine, in their order, as far as the budgets of both go; before that, settles earlier ones.
-- The last call of a worker for an engine may be repeated. `used` counts what the run has spent and reserved, `used:ENGINE` its
-- part of an engine with a budget, which holds over all runs; a reservation that nobody settles stays spent.
-- A: run, epoch, incarnation, token, engine (digest), limits and engine_limits (-1: none), settled (differences), ended
-- (requests), needs = {{amount, ...}, ...}
local run, me = need(A.run, 'string', 'run'), need(A.incarnation, 'string', 'incarnation')
local token, engine = need(A.token, 'string', 'token'), need(A.engine, 'string', 'engine')
whole(A.epoch, 'epoch'); whole(A.ended, 'ended')
local function amounts(list, name)
  if #need(list, 'table', name) ~= 4 then error('chainette: ' .. name .. ' has ' .. #list .. ' amounts') end
  for _, amount in ipairs(list) do whole(amount, name) end
  return list
end
amounts(A.limits, 'limits'); amounts(A.engine_limits, 'engine_limits'); amounts(A.settled, 'settled')
for _, needed in ipairs(need(A.needs, 'table', 'needs')) do amounts(needed, 'needs') end
local key, mine, of_engine = run_key(run), 'reserved:' .. A.epoch .. ':' .. me .. ' ' .. engine, 'used:' .. engine
local is_limited = math.max(unpack(A.engine_limits)) >= 0
local found = redis.call('HMGET', key, 'epoch', 'state', 'used', mine, of_engine, 'exhausted')
if tonumber(found[1] or -1) ~= A.epoch or found[2] == 'cancelled' then return {'LOST'} end
local used, own, others = amounts_of(found[3]), amounts_of(found[5]), {}
if #used ~= 4 or (is_limited and #own ~= 4) then
  damage(run, 'the budget that the run has used is gone from Redis')
  return {'LOST'}
end
if is_limited then
  others = amounts_of(redis.call('HGET', CLOSED, engine))
  for _, other in ipairs(redis.call('SMEMBERS', 'chainette:runs')) do
    if other ~= run then others = added(others, amounts_of(redis.call('HGET', run_key(other), of_engine))) end
  end
end
local function reply(granted, exhausted)
  return {'OK', granted, exhausted, amount_words(used), amount_words(added(own, {}))}
end
local last, granted, open = string.match(found[4] or '', '^(%S+) (%d+) (%d+)$')
if last == token then return reply(tonumber(granted), 0) end
open = math.max(0, (tonumber(open) or 0) - A.ended)
used, own, granted = added(used, A.settled), added(own, A.settled), 0
local function fits(limits, has, needed)
  for i = 1, 4 do
    if limits[i] >= 0 and has[i] + math.max(1, needed[i]) > limits[i] then return false end
  end
  return true
end
for _, needed in ipairs(A.needs) do
  if found[6] or not (fits(A.limits, used, needed) and fits(A.engine_limits, added(own, others), needed)) then break end
  used, own, granted = added(used, needed), added(own, needed), granted + 1
end
redis.call('HSET', key, 'used', amount_words(used), mine, token .. ' ' .. granted .. ' ' .. (open + granted))
if is_limited then redis.call('HSET', key, of_engine, amount_words(own)) end
if #A.needs == 0 or granted > 0 then return reply(granted, 0) end
if found[6] then return reply(0, 1) end -- it stops, and what is sent now would be thrown away

-- Whether a live worker has a request of a run in flight, and of an engine, if one is named.
local function in_flight(run, engine)
  local fields = redis.call('HGETALL', run_key(run))
  for i = 1, #fields, 2 do
    local name, of = string.match(fields[i], '^reserved:%d+:(%S*) (.*)$')
    if name and (not engine or of == engine) and (tonumber(string.match(fields[i + 1], '(%d+)$')) or 0) > 0 then
      local lease = redis.call('ZSCORE', 'chainette:lease', name)
      if lease and tonumber(lease) > now() then return true end
    end
  end
  return false
end
if in_flight(run) then return reply(0, 0) end
if fits(A.limits, used, A.needs[1]) then -- then it is the engine's budget
  for _, each in ipairs(redis.call('SMEMBERS', 'chainette:runs')) do
    if in_flight(each, engine) then return reply(0, 0) end
  end
  redis.call('HSET', key, 'exhausted_by', engine .. ' ' .. amount_words(added(own, others)))
end
redis.call('HSET', key, 'exhausted', 1, 'needed', amount_words(A.needs[1]))
return reply(0, 1)
