-- Returns the workers that are alive by the broker's clock.
return redis.call('ZRANGEBYSCORE', keys.workers, text(now_ms()), '+inf')
