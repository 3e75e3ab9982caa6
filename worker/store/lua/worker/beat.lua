-- Heartbeat: renews the worker's presence and, with an id, its run's lease.
-- ARGV: id or '', worker with its engine, lease in ms, run, step, whether it takes more (0 or 1),
-- key of the drain order, stage, progress.
-- Returns orders: any of 'drain', 'lost' (the run lost its lease) and 'cancel'.
local id, lease_ms = ARGV[1], ARGV[3]
local now = now_ms()
if ARGV[6] == '1' then
  redis.call('ZADD', keys.workers, text(now + lease_ms), ARGV[2])
else
  redis.call('ZREM', keys.workers, ARGV[2])
end
redis.call('ZREMRANGEBYSCORE', keys.workers, '-inf', text(now))
local orders = {}
if redis.call('EXISTS', ARGV[7]) == 1 then
  orders[#orders + 1] = 'drain'
end
if id == '' then
  return orders
end
local record = read(keys.record, 'status', 'run', 'cancelled', 'queue')
if record[1] ~= 'PROCESSING' or record[2] ~= ARGV[4] then
  orders[#orders + 1] = 'lost'
  return orders
end
if record[3] then
  orders[#orders + 1] = 'cancel'
end
use_queue(record[4])
redis.call('ZADD', keys.leases, text(now + lease_ms), id)
redis.call('HSET', keys.record, 'step', ARGV[5], 'stage', ARGV[8], 'progress', ARGV[9])
return orders
