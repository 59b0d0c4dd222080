-- A run that was called cancelled without the word for it goes on. A: run, words (that are right; {} for any)
local key = run_key(need(A.run, 'string', 'run'))
strings(A.words, 'words')
local word = redis.call('GET', cancel_key(A.run))
if redis.call('HGET', key, 'state') ~= 'cancelled' or (word and (#A.words == 0 or A.words[1] == word)) then
  return 'NONE'
end
redis.call('DEL', cancel_key(A.run))
redis.call('HSET', key, 'state', redis.call('HEXISTS', key, 'epoch') == 1 and 'running' or 'asked')
redis.call('PERSIST', key)
return 'OK'
