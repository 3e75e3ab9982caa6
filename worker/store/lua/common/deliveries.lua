-- Webhook deliveries, and the standing webhooks that they go to.

-- Pending deliveries at most of a standing webhook, and of an owner to the URLs of its requests. Above it
-- the newest is given up: older ones were promised. A dead receiver takes no room of another webhook.
local MOST_DUE_STANDING, MOST_DUE = 500, 1000

-- The part of a delivery's id that names its standing webhook, or nil.
local function webhook_of(id)
  return string.match(id, ':(.+)')
end

-- The set of the deliveries that count against the same limit.
local function backlog(id, owner)
  return keys.webhooks .. ':' .. owner .. ':' .. (webhook_of(id) or '')
end

-- A delivery is due at `at`. Each owner has a queue of its own, so that owners do not delay each other.
local function schedule_delivery(id, owner, at)
  redis.call('SADD', backlog(id, owner), id)
  redis.call('ZADD', keys.webhooks .. ':' .. owner, text(at), id)
  redis.call('ZADD', keys.webhooks, 'LT', text(at), owner)
end

local function unschedule_delivery(id, owner)
  redis.call('SREM', backlog(id, owner), id)
  redis.call('ZREM', keys.webhooks .. ':' .. owner, id)
  if redis.call('EXISTS', keys.webhooks .. ':' .. owner) == 0 then
    redis.call('ZREM', keys.webhooks, owner)
  end
end

-- Adds a line to the log of a delivery.
local function log_attempt(id, line)
  local log = redis.call('HGET', keys.webhook .. id, 'log') or ''
  redis.call('HSET', keys.webhook .. id, 'log', log .. text(now_ms()) .. ' ' .. line .. '\n')
end

-- Takes a delivered or given-up delivery out of the queue. Its log is kept as long as a record.
local function end_delivery(id, owner, retention_ms)
  local state = redis.call('HGET', keys.webhook .. id, 'state')
  if state and state ~= 'due' then
    count('webhooks ' .. state)
  end
  unschedule_delivery(id, owner)
  redis.call('PEXPIRE', keys.webhook .. id, retention_ms)
end

-- Ends a delivery without a further attempt. The outcome of one under way is not recorded any more.
local function give_up_delivery(id, owner, reason, retention_ms)
  redis.call('HSET', keys.webhook .. id, 'state', 'given_up')
  log_attempt(id, reason)
  end_delivery(id, owner, retention_ms)
end

-- Fields of a record that no delivery needs.
local NOT_SENT = { webhook_url = true, history_days = true, history_params = true, history_entry = true,
                   cache_key = true, frames_key = true, cached_gpu_ms = true, cached_share = true,
                   identity = true, store = true }

-- The fields of a delivery that are those of the ended request. The record may expire before the last
-- attempt, so the delivery holds a copy of its fields, each prefixed with a colon.
local function fields_of_record()
  local fields = { 'expires_at', text(redis.call('PEXPIRETIME', keys.record)) }
  local record = redis.call('HGETALL', keys.record)
  for index = 1, #record, 2 do
    if not NOT_SENT[record[index]] then
      fields[#fields + 1] = ':' .. record[index]
      fields[#fields + 1] = record[index + 1]
    end
  end
  return fields
end

local function enqueue_delivery(id, owner, url, retention_ms, fields)
  redis.call('HSET', keys.webhook .. id, 'state', 'due', 'owner', owner, 'url', url, 'attempts', 0,
             'before', 0, 'created_at', text(now_ms()), unpack(fields))
  local is_standing = webhook_of(id)
  if redis.call('SCARD', backlog(id, owner)) < (is_standing and MOST_DUE_STANDING or MOST_DUE) then
    schedule_delivery(id, owner, now_ms())
  else
    local whose = is_standing and 'webhook' or 'key'
    give_up_delivery(id, owner, 'too many deliveries of this ' .. whose .. ' are due', retention_ms)
  end
end

-- Latest deliveries of a standing webhook that its log names.
local MOST_LOGGED = 100
-- Longer than all retries of a delivery.
local RETRIES_MS = 2 * DAY_MS

-- A standing webhook, or nil. One that cannot be read is none: the end of a request must not fail.
local function standing_webhook(owner, webhook_id)
  local is_read, webhook = pcall(cjson.decode, redis.pcall('HGET', keys.standing .. owner, webhook_id))
  if is_read and type(webhook) == 'table' and webhook.url and webhook.base then
    return webhook
  end
end

local DELETED = 'the webhook was deleted'

-- The name under which standing webhooks ask for notices of the budget.
local BUDGET = 'BUDGET'

-- Whether a standing webhook receives an event; nil is the end of a request.
local function receives(webhook, event)
  if not event then
    return webhook.is_heard
  end
  for _, name in ipairs(type(webhook.types) == 'table' and webhook.types or {}) do
    if name == BUDGET then
      return true
    end
  end
  return false
end

-- Why a standing webhook does not get a delivery, or nil. The webhook is nil when it was deleted.
local function refusal(webhook, event)
  if not webhook then
    return DELETED
  end
  local what = event and 'notices of the budget' or 'the ends of requests'
  return not receives(webhook, event) and 'the webhook does not receive ' .. what .. ' any more' or nil
end

local function is_under_way(id)
  local attempts, noted = unpack(redis.call('HMGET', keys.webhook .. id, 'attempts', 'noted'))
  return (attempts or '0') ~= (noted or '0')
end

-- Gives up the waiting deliveries that a standing webhook does not get any more. An attempt under way may
-- still deliver; otherwise take_webhooks gives up what is due after it.
local function give_up_standing(owner, webhook_id, webhook, retention_ms)
  for _, id in ipairs(redis.call('SMEMBERS', backlog(':' .. webhook_id, owner))) do
    local reason = refusal(webhook, redis.call('HGET', keys.webhook .. id, 'event'))
    if reason and not is_under_way(id) then
      give_up_delivery(id, owner, reason, retention_ms)
    end
  end
end

-- Queues a delivery to each standing webhook of the owner that receives the event; see `receives`. Returns
-- their ids.
local function enqueue_standing(id, owner, event, retention_ms, fields)
  local ids = {}
  for _, webhook_id in ipairs(redis.pcall('HKEYS', keys.standing .. owner)) do
    local webhook = standing_webhook(owner, webhook_id)
    if webhook and receives(webhook, event) then
      local delivery_id, log = id .. ':' .. webhook_id, keys.standing .. 'log:' .. webhook_id
      enqueue_delivery(delivery_id, owner, webhook.url, retention_ms, fields)
      redis.call('HSET', keys.webhook .. delivery_id, 'webhook_id', webhook_id,
                 ':webhook_base', webhook.base)
      redis.call('LPUSH', log, delivery_id)
      redis.call('LTRIM', log, 0, MOST_LOGGED - 1)
      redis.call('PEXPIRE', log, text(RETRIES_MS + retention_ms))
      ids[#ids + 1] = delivery_id
    end
  end
  return ids
end

-- Queues all deliveries of an ended request. The record lists those to standing webhooks, as it may outlive
-- a webhook.
local function enqueue_deliveries(id, owner, retention_ms)
  if is_revoked(owner) then
    return
  end
  local url, fields = redis.call('HGET', keys.record, 'webhook_url'), fields_of_record()
  if url then
    enqueue_delivery(id, owner, url, retention_ms, fields)
  end
  local ids = enqueue_standing(id, owner, nil, retention_ms, fields)
  if ids[1] then
    redis.call('HSET', keys.record, 'deliveries', table.concat(ids, ' '))
  end
end

-- After a charge: queues a notice for each share of the monthly cap, in per cent, that the month's charges have
-- come to, once a month. A webhook that is added later gets only later ones. Hardly a cap is a multiple of the
-- prices, so a rest below 20 per cent counts as none if it does not cover another request like this one.
local function notify_of_budget(owner, retention_ms)
  local cap = redis.call('HGET', keys.api_key .. owner, 'monthly_cap')
  if not cap or is_revoked(owner) then
    return
  end
  local month = this_month(owner)
  local rest = cap - month.charged
  -- In fifths, as a hundred times a large cap is more than Lua counts exactly.
  local is_near = rest * 5 <= tonumber(cap)
  local is_spent = rest <= 0 or is_near and rest < tonumber(redis.call('HGET', keys.record, 'reserved') or 0)
  for _, notice in ipairs({ { 80, 'budget.warning', is_near }, { 100, 'budget.reached', is_spent } }) do
    local percent, event, has_come = unpack(notice)
    if has_come and not month.noticed[percent] then
      add_usage(owner, 'budget_' .. percent, 1)
      enqueue_standing('budget-' .. percent .. '-' .. month.name .. '-' .. owner, owner, event, retention_ms, {
        'event', event, 'expires_at', text(now_ms() + retention_ms), ':percent', percent,
        ':month', month.name, ':ends_at', text(month.ends_at), ':monthly_cap', cap,
        ':charged', text(month.charged) })
    end
  end
end
