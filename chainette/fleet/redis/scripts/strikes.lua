-- Deaths that are held against units. Needs common.lua before it. The strikes that a worker's lost lease costs its units are kept by
-- name, since it may live: then it is taken back.
local function struck_key(j, me) return prefix_of(j.run, j.epoch) .. 'struck:' .. me end

local function remember(job, j, me, counter)
  redis.call('HSET', struck_key(j, me), job, counter)
  redis.call('EXPIRE', struck_key(j, me), 86400)
  return redis.call('HINCRBY', job_key(job), counter, 1)
end

local function is_broken(j, deaths) return deaths >= 2 or (deaths >= 1 and tonumber(j.rows) > 1) end

-- First death: again. Second: alone. Only a death alone says that the unit is the cause; one that nobody had begun, none.
local function strike(job, j, me)
  if j.ahead == '1' then
    put_back(job, j, true)
  elseif j.solo == '1' then
    if is_broken(j, remember(job, j, me, 'deaths')) then
      redis.call('HSET', job_key(job), 'status', 'broken', 'claim', '')
      redis.call('RPUSH', broken_key(j), job)
    else
      put_back(job, j, true)
    end
  else
    if remember(job, j, me, 'strikes') >= 2 then
      redis.call('HSET', job_key(job), 'solo', '1')
      j.solo = '1'
    end
    put_back(job, j, true)
  end
end

-- One strike less; where the unit waits for its punishment, it waits as before. Of one unit so many strikes only: it may be
-- the unit that stalls the workers that come back.
local function pardon(job, counter)
  local j = job_of(job)
  if not j.run or tonumber(j[counter] or 0) == 0 or redis.call('HINCRBY', job_key(job), 'pardons', 1) > 3 then return end
  local left = redis.call('HINCRBY', job_key(job), counter, -1)
  if counter == 'strikes' and j.solo == '1' and left < 2 then
    redis.call('HSET', job_key(job), 'solo', '')
    local solo = solo_key(j)
    j.solo = nil
    if redis.call('LREM', solo, 1, job) > 0 then put_back(job, j, true) end
  elseif counter == 'deaths' and not is_broken(j, left) and redis.call('LREM', broken_key(j), 1, job) > 0 then
    put_back(job, j, true)
  end
end

-- The worker lives, so that its lost leases say nothing against its units.
local function pardon_all(me)
  for _, run in ipairs(redis.call('SMEMBERS', 'chainette:runs')) do
    local j = {run = run, epoch = redis.call('HGET', run_key(run), 'epoch')}
    if j.epoch then
      local struck = redis.call('HGETALL', struck_key(j, me))
      for i = 1, #struck, 2 do pardon(struck[i], struck[i + 1]) end
      if #struck > 0 then redis.call('DEL', struck_key(j, me)) end
    end
  end
end
