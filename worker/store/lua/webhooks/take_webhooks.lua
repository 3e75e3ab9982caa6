-- Leases due deliveries to one sender; when the lease expires, they are due again. Owners take turns: an
-- owner of whom some were taken comes after all other owners with due deliveries.
-- ARGV: '', most, lease in ms, most attempts, retention in ms, most at once of an owner, then the sender's
-- busy owners, each with its number. Returns the ids, each with its hash (as names and values).
local MOST_LOOKED_AT = 200
local now = now_ms()
local most, most_attempts, most_of_owner = tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[6])
local busy, taken = {}, {}
for index = 7, #ARGV, 2 do
  busy[ARGV[index]] = tonumber(ARGV[index + 1])
end

local function first_due(set)
  return redis.call('ZRANGE', set, '-inf', text(now), 'BYSCORE', 'LIMIT', 0, MOST_LOOKED_AT)
end

-- Why a delivery has no further attempt, if so.
local function obstacle(owner, webhook, webhook_id, event, number)
  if is_revoked(owner) then
    return 'the API key was revoked'
  end
  local reason = webhook_id and refusal(webhook, event)
  if reason then
    return reason
  end
  return number > most_attempts and 'the sender ended during the last attempt'
end

local function take(id, owner)
  local delivery = keys.webhook .. id
  local attempts, before, webhook_id, event =
    unpack(redis.call('HMGET', delivery, 'attempts', 'before', 'webhook_id', 'event'))
  if not attempts then
    unschedule_delivery(id, owner)
    return
  end
  local webhook = webhook_id and standing_webhook(owner, webhook_id)
  local reason = obstacle(owner, webhook, webhook_id, event, attempts - before + 1)
  if reason then
    give_up_delivery(id, owner, reason, ARGV[5])
    return
  end
  if webhook then -- it may lead elsewhere since the end of the request
    redis.call('HSET', delivery, 'url', webhook.url, ':webhook_base', webhook.base)
  end
  busy[owner] = (busy[owner] or 0) + 1
  redis.call('HINCRBY', delivery, 'attempts', 1)
  schedule_delivery(id, owner, now + ARGV[3])
  taken[#taken + 1] = id
  taken[#taken + 1] = redis.call('HGETALL', delivery)
end

local function is_full(owner)
  return #taken >= 2 * most or (busy[owner] or 0) >= most_of_owner
end

for _, owner in ipairs(first_due(keys.webhooks)) do
  if not is_full(owner) then
    for _, id in ipairs(first_due(keys.webhooks .. ':' .. owner)) do
      if is_full(owner) then
        break
      end
      take(id, owner)
    end
    local first = redis.call('ZRANGE', keys.webhooks .. ':' .. owner, 0, 0, 'WITHSCORES')[2]
    if first then
      redis.call('ZADD', keys.webhooks, text(math.max(now, first)), owner)
    else
      redis.call('ZREM', keys.webhooks, owner)
    end
  end
end
return taken
