-- What a reconciler should look at.
-- ARGV: '', lease in ms, longest gap in ms. Returns ids whose lease has ended, ids that are popped and
-- not started, how many waiting requests stand in neither of RQ's lists, and for how many ms the
-- broker has been looked at: without a gap, which an outage would be, or a clock that was set.
local now = now_ms()
local last, since = unpack(redis.call('HMGET', keys.looks, 'last', 'since'))
if not last or now < tonumber(last) or now - last > tonumber(ARGV[3]) then
  since = text(now)
end
redis.call('HSET', keys.looks, 'last', text(now), 'since', since)

-- No lease is that long: the clock was set back. Who is alive beats again within a second.
local farthest = text(now + ARGV[2] + 60000)
redis.call('ZREMRANGEBYSCORE', keys.workers, farthest, '+inf')
for _, id in ipairs(redis.call('ZRANGEBYSCORE', keys.leases, farthest, '+inf')) do
  redis.call('ZADD', keys.leases, text(now + ARGV[2]), id)
end

local popped = redis.call('LRANGE', keys.intermediate, 0, -1)
local missing = redis.call('ZCARD', keys.waiting) - redis.call('LLEN', keys.rq_queue) - #popped
return { redis.call('ZRANGEBYSCORE', keys.leases, '-inf', text(now)), popped, missing, now - since }
