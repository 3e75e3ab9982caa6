-- PROCESSING -> QUEUED by a worker that must stop: the attempt does not count.
-- ARGV: id, run. Returns 1 when it was ours to give.
local record = redis.call('HMGET', keys.record, 'status', 'run')
if record[1] ~= 'PROCESSING' or record[2] ~= ARGV[2] then
  return 0
end
redis.call('HINCRBY', keys.record, 'attempt', -1)
requeue(ARGV[1])
return 1
