-- PROCESSING -> QUEUED by a worker that must stop: the attempt does not count.
-- ARGV: id, run, retention in ms, mJ of the run or ''. Returns 1 when the run held the lease, else 0.
local record = read(keys.record, 'status', 'run', 'owner', 'queue')
if record[1] ~= 'PROCESSING' or record[2] ~= ARGV[2] then
  return 0
end
use_queue(record[4])
add_energy(record[3], ARGV[4])
if not end_if_cancelled(ARGV[1], ARGV[3]) then
  redis.call('HINCRBY', keys.record, 'attempt', -1)
  requeue(ARGV[1], 'stopped')
end
return 1
