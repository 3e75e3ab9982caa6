-- A waiting request that was popped and never started, or that is in no list at all.
-- ARGV: id, most attempts, retention in ms, error.
local id = ARGV[1]
if redis.call('HGET', keys.record, 'status') ~= 'QUEUED' then
  redis.call('LREM', keys.intermediate, 0, id)
  leave_queue(id)
  return nil
end
if redis.call('LPOS', keys.rq_queue, id) then
  redis.call('LREM', keys.intermediate, 0, id)
  return nil
end
count('lost pop')
-- A worker that dies between pop and start counts as an attempt: a poisoned pop must end as well.
redis.call('HINCRBY', keys.record, 'attempt', 1)
return retry(id, tonumber(ARGV[2]), ARGV[3], ARGV[4])
