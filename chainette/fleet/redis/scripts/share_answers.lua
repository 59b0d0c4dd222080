-- Questions that rows share: takes answers and questions that are given up, then says of each question that is wanted its
-- answer, or who asks it: the caller from now on, or another live worker. Two tables of answers take turns, so that old ones go.
-- Answers beyond `light` bytes come with the next call. The words for an asker are numbers, which no answer is.
-- A: run, epoch, incarnation, wanted, answers = {{question, answer}, ...}, given_up, most, most_bytes, light
local run, me = need(A.run, 'string', 'run'), need(A.incarnation, 'string', 'incarnation')
whole(A.epoch, 'epoch'); whole(A.most, 'most'); whole(A.most_bytes, 'most_bytes'); whole(A.light, 'light')
strings(A.wanted, 'wanted'); strings(A.given_up, 'given_up')
for _, pair in ipairs(need(A.answers, 'table', 'answers')) do strings(need(pair, 'table', 'answers'), 'answers') end
local found = redis.call('HMGET', run_key(run), 'epoch', 'state')
if tonumber(found[1] or -1) ~= A.epoch or found[2] == 'cancelled' then return {'LOST'} end
local P = prefix_of(run, A.epoch)
local new, old, asking = P .. 'answers:new', P .. 'answers:old', P .. 'asking'

local HERE, ELSEWHERE = 1, 2

local function give_up(question)
  if redis.call('HGET', asking, question) == me then redis.call('HDEL', asking, question) end
end
-- The bytes of a table are beside its answers, under a name that no question has: those are 16 bytes long.
local bytes = tonumber(redis.call('HGET', new, 'bytes') or 0) or 0
local known = redis.call('HLEN', new)
for _, pair in ipairs(A.answers) do
  local question, answer = pair[1], pair[2]
  if 2 * #answer <= A.most_bytes then
    if 2 * (known + 1) > A.most or 2 * (bytes + #answer) > A.most_bytes then
      redis.call('DEL', old)
      redis.call('RENAME', new, old)
      bytes, known = 0, 0
    end
    bytes, known = bytes + #answer, known + redis.call('HSET', new, question, answer)
  end
  give_up(question)
end
if #A.answers > 0 then redis.call('HSET', new, 'bytes', bytes) end
for _, question in ipairs(A.given_up) do give_up(question) end

local reply, given = {'OK'}, 0
for _, question in ipairs(A.wanted) do
  local answer = redis.call('HGET', new, question) or redis.call('HGET', old, question)
  if answer and 2 * #answer <= A.most_bytes then
    given = given + #answer
    if given > math.max(A.light, #answer) then answer = ELSEWHERE end
  else
    local asker = redis.call('HGET', asking, question)
    local lease = asker and asker ~= me and redis.call('ZSCORE', 'chainette:lease', asker)
    answer = lease and tonumber(lease) > now() and ELSEWHERE or HERE
    if answer == HERE then redis.call('HSET', asking, question, me) end
  end
  reply[#reply + 1] = answer
end
return reply
