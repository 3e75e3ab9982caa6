-- Adds a standing webhook, or changes one. One that does not receive the ends of requests any more gives up
-- its waiting deliveries.
-- ARGV: '', owner, id, the webhook as JSON, most of an owner to add one, or 0 to change one, retention in ms.
-- Returns 1, or 0: the owner has as many, or none with this id.
local owner, id, webhook = ARGV[2], ARGV[3], ARGV[4]
local webhooks = keys.standing .. owner
local is_new = redis.call('HEXISTS', webhooks, id) == 0
if is_new and redis.call('HLEN', webhooks) >= tonumber(ARGV[5]) then
  return 0
end
redis.call('HSET', webhooks, id, webhook)
if not cjson.decode(webhook).is_heard then
  give_up_standing(owner, id, DEAF, ARGV[6])
end
return 1
