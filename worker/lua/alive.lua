-- How many workers are alive by the broker's clock.
return redis.call('ZCOUNT', keys.workers, text(now_ms()), '+inf')
