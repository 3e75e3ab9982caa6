-- Secrets, of which the first call draws the first. A full memory does not refuse it.
-- KEYS: their names. ARGV: a new secret, and for an API key's the name of its record.
-- Returns them; false for one that there is not. None of an API key that was revoked: a new one would stay.
if ARGV[2] and redis.call('HEXISTS', ARGV[2], 'revoked_at') == 1 then
  return {}
end
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return redis.call('MGET', unpack(KEYS))
