-- Deliver once more, from now on and as often as anew. What is on its way is noted no more.
-- ARGV: id. Returns 'due', 'revoked', or nil: no such delivery.
local id = ARGV[1]
local delivery = keys.webhook .. id
local owner, attempts = unpack(redis.call('HMGET', delivery, 'owner', 'attempts'))
if not owner then
  return nil
end
if redis.call('HEXISTS', keys.api_key .. owner, 'revoked_at') == 1 then
  return 'revoked'
end
redis.call('HSET', delivery, 'state', 'due', 'before', attempts, 'noted', attempts)
redis.call('PERSIST', delivery)
owe_at(id, owner, now_ms())
return 'due'
