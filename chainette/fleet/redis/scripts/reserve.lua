-- Reserves requests of a run, in their order, as far as its budget goes; before that, settles earlier ones. The last call of a
-- worker may be repeated. `used` counts what is spent and reserved; a reservation that nobody settles stays spent.
-- A: run, epoch, incarnation, token, limits (-1: none), settled (differences), ended (requests), needs = {{amount, ...}, ...}
local run, me = need(A.run, 'string', 'run'), need(A.incarnation, 'string', 'incarnation')
local token = need(A.token, 'string', 'token')
whole(A.epoch, 'epoch'); whole(A.ended, 'ended')
local function amounts(list, name)
  if #need(list, 'table', name) ~= 4 then error('chainette: ' .. name .. ' has ' .. #list .. ' amounts') end
  for _, amount in ipairs(list) do whole(amount, name) end
  return list
end
amounts(A.limits, 'limits'); amounts(A.settled, 'settled')
for _, needed in ipairs(need(A.needs, 'table', 'needs')) do amounts(needed, 'needs') end
local key, mine = run_key(run), 'reserved:' .. A.epoch .. ':' .. me
local found = redis.call('HMGET', key, 'epoch', 'state', 'used', mine)
if tonumber(found[1] or -1) ~= A.epoch or found[2] == 'cancelled' then return {'LOST'} end
local used = {}
for word in string.gmatch(found[3] or '', '%d+') do used[#used + 1] = tonumber(word) end
if #used ~= 4 then damage(run, 'the budget that the run has used is gone from Redis'); return {'LOST'} end
local last, granted, open = string.match(found[4] or '', '^(%S+) (%d+) (%d+)$')
local function words() return string.format('%.0f %.0f %.0f %.0f', unpack(used)) end
if last == token then return {'OK', tonumber(granted), words(), 0} end
open = math.max(0, (tonumber(open) or 0) - A.ended)
for i = 1, 4 do used[i] = math.max(0, used[i] + A.settled[i]) end
granted = 0
local function fits(needed)
  for i = 1, 4 do
    if A.limits[i] >= 0 and used[i] + math.max(1, needed[i]) > A.limits[i] then return false end
  end
  return true
end
for _, needed in ipairs(A.needs) do
  if not fits(needed) then break end
  for i = 1, 4 do used[i] = used[i] + needed[i] end
  granted = granted + 1
end
redis.call('HSET', key, 'used', words(), mine, token .. ' ' .. granted .. ' ' .. (open + granted))

-- Whether a live worker has a request in flight.
local function in_flight()
  local fields, mark = redis.call('HGETALL', key), 'reserved:' .. A.epoch .. ':'
  for i = 1, #fields, 2 do
    local name = fields[i]
    if string.sub(name, 1, #mark) == mark and (tonumber(string.match(fields[i + 1], '(%d+)$')) or 0) > 0 then
      local lease = redis.call('ZSCORE', 'chainette:lease', string.sub(name, #mark + 1))
      if lease and tonumber(lease) > now() then return true end
    end
  end
  return false
end
local exhausted = #A.needs > 0 and granted == 0 and not in_flight()
if exhausted then redis.call('HSET', key, 'exhausted', 1) end
return {'OK', granted, words(), exhausted and 1 or 0}
