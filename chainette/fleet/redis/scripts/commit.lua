-- The outcome of a unit, or of some of its rows: result entry, successors and scope step at once, or nothing. DONE: an earlier
-- call did it. BEHIND: the part is not the next one of its unit. UNSTAGED: a body that was staged is gone, since it waited too
-- long.
-- A: job, token (of the claim), incarnation, scope, part, size, rows, unfinished, entry, entry_token, effects. `rows` are the ids
--    of the `size` rows that end; absent: all that are left. `unfinished` was done for the others.
local job = need(A.job, 'string', 'job')
need(A.token, 'string', 'token'); need(A.incarnation, 'string', 'incarnation'); need(A.scope, 'string', 'scope')
need(A.entry_token, 'string', 'entry_token'); whole(A.part, 'part')
need(A.unfinished, 'string', 'unfinished')
if whole(A.size, 'size') < 1 then error('chainette: a part of ' .. A.size .. ' rows') end
if A.rows and #strings(A.rows, 'rows') ~= A.size then error('chainette: ' .. #A.rows .. ' rows are not ' .. A.size) end
local j = job_of(job)
if j.done == A.entry_token then return 'DONE' end
if not holds(job, A.token, j) then let_go(job, A.token, A.incarnation, A.scope); return 'LOST' end
if not is_next(job, j, A.part) then return 'BEHIND' end
local RUN, EPOCH, root = j.run, j.epoch, j.root
local P, BARRED, ENTRY = prefix_of(RUN, EPOCH), j.barred, A.entry_token
--EFFECTS

local function each_thousand(list, use)
  for first = 1, #list, 1000 do use(unpack(list, first, math.min(first + 999, #list))) end
end

-- Whether every row of the part is still in the unit; if no rows are named, whether they are all.
local left = tonumber(j.rows) - A.size
local function has_rows()
  if not A.rows then return left == 0 end
  if j.fork ~= '' then error('chainette: a join has no parts') end
  local taken = 0
  each_thousand(A.rows, function(...)
    for _, is_in in ipairs(redis.call('SMISMEMBER', taken_key(j, job), ...)) do taken = taken + is_in end
  end)
  return taken == 0 and left >= 0
end

if not has_rows() then return 'BEHIND' end
check_effects(A.effects, root)
body(A.entry, 'entry')
local bodies = {A.entry}
for _, u in ipairs(A.effects.units) do bodies[#bodies + 1] = u.payload end
if not all_there(bodies) then return 'UNSTAGED' end
local lost = lost_scope(job, root, j.scope, A.effects)
if lost then -- else it would end a fork or a root that is not at its end
  drop(job, j, A.incarnation)
  damage(RUN, lost)
  return 'LOST'
end
add(A.effects, root)
if left > 0 then
  redis.call('HSET', job_key(job), 'part', A.part + 1, 'done', A.entry_token, 'rows', left)
  each_thousand(A.rows, function(...) redis.call('SADD', taken_key(j, job), ...) end)
  leave_unfinished(job, A.unfinished)
else
  redis.call('SREM', scope_key(root, j.scope), job)
  drop(job, j, A.incarnation)
  redis.call('DEL', job_key(job), taken_key(j, job), unpack(j.fork == '' and payload_keys(j, job) or {fork_key(root, j.fork)}))
end
local done = settle(root, j.scope)
weigh(root, -A.size)
local stage = stage_of(done)
-- rows that went into all results of the epoch: between two entries, their difference says how many rows lie
local results = redis.call('HINCRBY', run_key(RUN), 'results', A.size)
local apart = type(A.entry) == 'table'
local id = redis.call('XADD', P .. 'stream', '*', 't', A.entry_token, 'k', 'unit', 'r', root, 'd', stage, 'n', results,
  apart and 'b' or 'e', apart and 'apart' or A.entry)
if stage == 2 then suspend(root, id) end
if apart then
  keep(P .. 'e:' .. A.entry_token, A.entry)
  redis.call('RPUSH', P .. 'apart', id .. ' ' .. A.entry_token)
end
return 'OK'
