-- Adds a standing webhook, or changes one. A URL has one webhook of an owner: adding it again changes that one.
-- A webhook that no longer receives an event gives up its waiting deliveries of it.
-- ARGV: '', owner, 'add' or 'change', id, the webhook as JSON, most of an owner, retention in ms.
-- Returns the outcome and an id: of the webhook, or of the one that has the URL.
local owner, act, id, webhook, most = ARGV[2], ARGV[3], ARGV[4], cjson.decode(ARGV[5]), tonumber(ARGV[6])
local webhooks = keys.standing .. owner
local is_known = redis.call('HEXISTS', webhooks, id) == 1

local twin
for _, other in ipairs(redis.call('HKEYS', webhooks)) do
  local known = standing_webhook(owner, other)
  if other ~= id and known and known.url == webhook.url then
    twin = other
  end
end

local function add()
  if twin then
    return 'changed', twin
  end
  local is_full = not is_known and redis.call('HLEN', webhooks) >= most
  return is_full and 'too_many' or 'added', id
end

local function change()
  if not is_known then
    return 'unknown', id
  end
  return twin and 'taken' or 'changed', twin or id
end

if is_revoked(owner) then
  return { 'revoked', id }
end
local outcome, put_id = (act == 'add' and add or change)()
if outcome == 'added' or outcome == 'changed' then
  local known = standing_webhook(owner, put_id)
  webhook.created_at = known and known.created_at or now_ms()
  redis.call('HSET', webhooks, put_id, cjson.encode(webhook))
  give_up_standing(owner, put_id, webhook, ARGV[7])
end
return { outcome, put_id }
