-- Deliveries that are due, each for one sender until its lease is over: then it is due again.
-- ARGV: '', most, lease in ms, most attempts, retention in ms, most at once of an owner, then owners
-- that this sender is at and for how many. Returns the id and the flat hash of each.
local MOST_LOOKED_AT, YIELD_MS = 200, 2000
local now = now_ms()
local most, most_attempts, most_of_owner = tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[6])
local busy = {}
for index = 7, #ARGV, 2 do
  busy[ARGV[index]] = tonumber(ARGV[index + 1])
end

local function end_unsent(id, reason)
  redis.call('HSET', keys.webhook .. id, 'state', 'given_up')
  note_webhook(id, reason)
  leave_webhooks(id, ARGV[5])
end

local taken = {}
local due = redis.call('ZRANGEBYSCORE', keys.webhooks, '-inf', text(now), 'LIMIT', 0, MOST_LOOKED_AT)
for _, id in ipairs(due) do
  if #taken >= 2 * most then
    break
  end
  local delivery = keys.webhook .. id
  local owner, attempts, before = unpack(redis.call('HMGET', delivery, 'owner', 'attempts', 'before'))
  if not owner then
    redis.call('ZREM', keys.webhooks, id)
  elseif redis.call('HEXISTS', keys.api_key .. owner, 'revoked_at') == 1 then
    end_unsent(id, 'the API key was revoked')
  elseif attempts - before >= most_attempts then
    end_unsent(id, 'the sender ended during the last attempt')
  elseif (busy[owner] or 0) >= most_of_owner then
    redis.call('ZADD', keys.webhooks, text(now + YIELD_MS), id) -- others are not to wait for it
  else
    busy[owner] = (busy[owner] or 0) + 1
    redis.call('HINCRBY', delivery, 'attempts', 1)
    redis.call('ZADD', keys.webhooks, text(now + ARGV[3]), id)
    taken[#taken + 1] = id
    taken[#taken + 1] = redis.call('HGETALL', delivery)
  end
end
return taken
