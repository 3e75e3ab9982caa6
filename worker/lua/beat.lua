-- The worker lives, and so does its run, if it has one.
-- ARGV: id or '', worker with its engine, lease in ms, run, step, whether it takes more (0 or 1).
-- Returns 0 when the run is no longer the worker's.
local id, lease_ms = ARGV[1], ARGV[3]
local now = now_ms()
if ARGV[6] == '1' then
  redis.call('ZADD', keys.workers, text(now + lease_ms), ARGV[2])
else
  redis.call('ZREM', keys.workers, ARGV[2])
end
redis.call('ZREMRANGEBYSCORE', keys.workers, '-inf', text(now))
if id == '' then
  return 1
end
local record = redis.call('HMGET', keys.record, 'status', 'run')
if record[1] ~= 'PROCESSING' or record[2] ~= ARGV[4] then
  return 0
end
redis.call('ZADD', keys.leases, text(now + lease_ms), id)
redis.call('HSET', keys.record, 'step', ARGV[5])
return 1
