-- Adds a standing webhook, or changes one.
-- ARGV: '', owner, id, the webhook as JSON, most of an owner to add one, or 0 to change one.
-- Returns 1, or 0: the owner has as many, or none with this id.
local webhooks = keys.standing .. ARGV[2]
local is_new = redis.call('HEXISTS', webhooks, ARGV[3]) == 0
if is_new and redis.call('HLEN', webhooks) >= tonumber(ARGV[5]) then
  return 0
end
redis.call('HSET', webhooks, ARGV[3], ARGV[4])
return 1
