-- What a reconciler may have to repair.
-- ARGV: '', lease in ms, longest gap in ms.
-- Returns, as names and values: the ids whose lease has expired, the ids popped and not started, how many
-- waiting requests are missing from both of RQ's lists, and for how many ms reconcilers have watched
-- without a gap (an outage, or a clock that was set).
local now = now_ms()
local last, since = unpack(redis.call('HMGET', keys.looks, 'last', 'since'))
if not last or now < tonumber(last) or now - last > tonumber(ARGV[3]) then
  since = text(now)
end
redis.call('HSET', keys.looks, 'last', text(now), 'since', since)

-- No lease is that long: the clock was set back. Live workers send a heartbeat within a second.
local farthest = text(now + ARGV[2] + 60000)
redis.call('ZREMRANGEBYSCORE', keys.workers, farthest, '+inf')
for _, id in ipairs(redis.call('ZRANGEBYSCORE', keys.leases, farthest, '+inf')) do
  redis.call('ZADD', keys.leases, text(now + ARGV[2]), id)
end

local popped = redis.call('LRANGE', keys.intermediate, 0, -1)
local missing = redis.call('ZCARD', keys.waiting) - redis.call('LLEN', keys.rq_queue) - #popped
return {
  'expired', redis.call('ZRANGEBYSCORE', keys.leases, '-inf', text(now)),
  'popped', popped,
  'missing', missing,
  'watched_ms', now - since,
}
