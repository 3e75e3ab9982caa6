-- Secrets, of which the first call draws the first. A full memory does not refuse it.
-- KEYS: their names. ARGV: a new secret. Returns them; false for one that there is not.
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return redis.call('MGET', unpack(KEYS))
