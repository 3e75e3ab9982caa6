-- A waiting request that was popped and never started, or is missing from RQ's lists.
-- ARGV: id, most attempts, retention in ms, error. Returns 'requeued', 'failed', or nil: nothing to do.
local id = ARGV[1]
local record = read(keys.record, 'status', 'queue', 'cache_key')
if record[1] ~= 'QUEUED' then
  leave_all_queues(id)
  return nil
end
use_queue(record[2])
if redis.call('LPOS', keys.rq_queue, id) then
  redis.call('LREM', keys.intermediate, 0, id)
  return nil
end
if redis.call('LPOS', keys.intermediate, id) and waits_for_twin(record[3]) then
  return nil
end
-- Counts as an attempt: a request that kills workers between pop and start must end too.
redis.call('HINCRBY', keys.record, 'attempt', 1)
local outcome = retry(id, tonumber(ARGV[2]), ARGV[3], ARGV[4])
count('lost pop') -- after the repair, which is tried again and again where it fails
return outcome
