-- What became of units, or of some of their rows: result entry, successors and scope step at once, or nothing. DONE: an earlier
-- call did it. BEHIND: the part is not the next one of its unit. UNSTAGED: a part that was staged is gone, since it waited too
-- long.
-- A: units = {{job, token (of the claim), part, size, rows}, ...} of one run, node, root and scope; incarnation, scope, entry,
--    token (of the entry), effects. `rows` are the ids of the `size` rows that end; absent: all that are left.
need(A.incarnation, 'string', 'incarnation'); need(A.scope, 'string', 'scope'); need(A.token, 'string', 'token')
if #need(A.units, 'table', 'units') == 0 then error('chainette: no units') end
for _, u in ipairs(A.units) do
  need(u, 'table', 'unit'); need(u.job, 'string', 'job'); need(u.token, 'string', 'token')
  whole(u.part, 'part')
  if whole(u.size, 'size') < 1 then error('chainette: a part of ' .. u.size .. ' rows') end
  if u.rows and #strings(u.rows, 'rows') ~= u.size then error('chainette: ' .. #u.rows .. ' rows are not ' .. u.size) end
end
for _, u in ipairs(A.units) do
  u.j = job_of(u.job)
  if u.j.done == A.token then return 'DONE' end
end
for _, u in ipairs(A.units) do
  if not holds(u.job, u.token, u.j) then let_go(u.job, u.token, A.incarnation, A.scope); return 'LOST' end
  if not is_next(u.job, u.j, u.part) then return 'BEHIND' end
end
local j = A.units[1].j
local RUN, EPOCH, root = j.run, j.epoch, j.root
local P, BARRED = prefix_of(RUN, EPOCH), j.barred
--EFFECTS

-- Whether every row of a part is still in its unit, and the unit ends only if none is left.
local function has_rows(u)
  if u.rows and u.j.fork ~= '' then error('chainette: a join has no parts') end
  u.ends = tonumber(u.j.rows) == u.size
  if not u.rows then return u.ends end
  for first = 1, #u.rows, 1000 do
    local known = redis.call('SMISMEMBER', taken_key(u.j, u.job), unpack(u.rows, first, math.min(first + 999, #u.rows)))
    for _, taken in ipairs(known) do
      if taken == 1 then return false end
    end
  end
  return tonumber(u.j.rows) >= u.size
end

local function gone(lost) -- else a fork or a root would end that is not at its end
  for _, u in ipairs(A.units) do drop(u.job, u.j, A.incarnation) end
  damage(RUN, lost)
  return 'LOST'
end

for _, u in ipairs(A.units) do
  if u.j.root ~= root or u.j.scope ~= j.scope or u.j.origin ~= j.origin then error('chainette: units of two places') end
  if not has_rows(u) then return 'BEHIND' end
end
check_effects(A.effects, root)
body(A.entry, 'entry')
local bodies = {A.entry}
for _, u in ipairs(A.effects.units) do bodies[#bodies + 1] = u.payload end
if not all_there(bodies) then return 'UNSTAGED' end
for _, u in ipairs(A.units) do
  local lost = lost_scope(u.job, root, j.scope, A.effects)
  if lost then return gone(lost) end
end

-- Rows leave a unit, and the last of them end it.
local function take_out(u)
  if not u.ends then
    redis.call('HSET', job_key(u.job), 'part', u.part + 1, 'done', A.token, 'rows', tonumber(u.j.rows) - u.size)
    for first = 1, #u.rows, 1000 do
      redis.call('SADD', taken_key(u.j, u.job), unpack(u.rows, first, math.min(first + 999, #u.rows)))
    end
    return
  end
  redis.call('SREM', scope_key(root, j.scope), u.job)
  drop(u.job, u.j, A.incarnation)
  redis.call('DEL', job_key(u.job), u.j.fork == '' and unit_key(u.job) or fork_key(root, u.j.fork))
  if u.part > 0 then redis.call('DEL', taken_key(u.j, u.job)) end
end

add(A.effects, root)
local rows = 0
for _, u in ipairs(A.units) do
  take_out(u)
  rows = rows + u.size
end
weigh(root, -rows)
local stage = stage_of(settle(root, j.scope))
-- rows that went into all results of the epoch: between two entries, their difference says how many rows lie
local results = redis.call('HINCRBY', run_key(RUN), 'results', rows)
local apart = type(A.entry) == 'table'
local id = redis.call('XADD', P .. 'stream', '*', 't', A.token, 'k', 'unit', 'r', root, 'd', stage, 'n', results,
  apart and 'b' or 'e', apart and 'apart' or A.entry)
if stage == 2 then suspend(root, id) end
if apart then
  keep(P .. 'e:' .. A.token, A.entry)
  redis.call('RPUSH', P .. 'apart', id .. ' ' .. A.token)
end
return 'OK'
