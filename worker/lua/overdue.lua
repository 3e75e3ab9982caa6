-- What a reconciler should look at. Returns ids whose lease has ended, ids that are popped and not
-- started, and how many waiting requests stand in neither of RQ's lists.
local popped = redis.call('LRANGE', keys.intermediate, 0, -1)
local missing = redis.call('ZCARD', keys.waiting) - redis.call('LLEN', keys.rq_queue) - #popped
return { redis.call('ZRANGEBYSCORE', keys.leases, '-inf', now_ms()), popped, missing }
