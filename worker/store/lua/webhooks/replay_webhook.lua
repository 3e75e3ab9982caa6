-- Delivers once more, due now and with all attempts. An attempt under way is not recorded any more.
-- ARGV: id. Returns 'due', 'revoked', or nil: no such delivery.
local id = ARGV[1]
local delivery = keys.webhook .. id
local owner, attempts = unpack(redis.call('HMGET', delivery, 'owner', 'attempts'))
if not owner then
  return nil
end
if is_revoked(owner) then
  return 'revoked'
end
redis.call('HSET', delivery, 'state', 'due', 'before', attempts, 'noted', attempts)
redis.call('PERSIST', delivery)
schedule_delivery(id, owner, now_ms())
return 'due'
