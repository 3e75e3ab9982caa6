-- Put before every script: the keys, in the order of keyspace.py, and shared functions.
local keys = {
  record = KEYS[1], rq_job = KEYS[2], waiting = KEYS[3], sequence = KEYS[4], leases = KEYS[5],
  workers = KEYS[6], rq_queue = KEYS[7], intermediate = KEYS[8], rq_queues = KEYS[9],
  turns = KEYS[10], looks = KEYS[11],
  -- The next four are prefixes, completed with an owner or a day.
  api_key = KEYS[12], live = KEYS[13], rate = KEYS[14], usage = KEYS[15],
  metrics = KEYS[16], paces = KEYS[17], previews = KEYS[18],
  webhooks = KEYS[19], webhook = KEYS[20], -- `webhook` is completed with a request's id.
  history = KEYS[21], expiries = KEYS[22], store = KEYS[23], past = KEYS[24],
  standing = KEYS[25],
}

-- The broker's clock, so that hosts' clocks do not matter.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function text(number)
  return string.format('%.0f', number)
end

-- Fields of a record, to be unpacked. A key of another type has none: it must not stop a script that
-- reads other records too, nor its own removal.
local function read(key, ...)
  local values = redis.pcall('HMGET', key, ...)
  return values.err and {} or values
end

-- Fields of a record as alternating names and values, false for one that is not there.
local function named(key, ...)
  local values, flat = read(key, ...), {}
  for index, name in ipairs({ ... }) do
    flat[#flat + 1] = name
    flat[#flat + 1] = values[index] or false
  end
  return flat
end

local function is_revoked(owner)
  return redis.call('HEXISTS', keys.api_key .. owner, 'revoked_at') == 1
end

-- Two sorted sets hold a waiting request: that of all, and its owner's. Places below 0 are those of
-- requests that have run before.
local function enter_queue(id, owner, place)
  place = string.format('%.17g', place)
  redis.call('ZADD', keys.waiting, place, id)
  redis.call('ZADD', keys.waiting .. ':' .. owner, place, id)
end

-- Adds to a counter of /metrics.
local function count(name, amount)
  redis.call('HINCRBY', keys.metrics, name, text(amount or 1))
end

-- A histogram is a count for each bound, and a sum. BOUNDS_MS comes from keyspace.py.
local function observe(name, ms)
  local bound = 'inf'
  for index = #BOUNDS_MS, 1, -1 do
    bound = ms <= BOUNDS_MS[index] and text(BOUNDS_MS[index]) or bound
  end
  count(name .. ' ' .. bound)
  count(name .. ' sum', ms)
end

local DAY_MS = 24 * 60 * 60 * 1000
local USAGE_KEPT_SECONDS = 401 * 24 * 60 * 60

-- Adds to the owner's usage of the day.
local function add_usage(owner, metric, amount)
  local today = keys.usage .. text(math.floor(now_ms() / DAY_MS))
  redis.call('HINCRBY', today, owner .. ' ' .. metric, text(amount))
  redis.call('EXPIRE', today, USAGE_KEPT_SECONDS, 'NX')
end

-- A run is over, however it ended. Returns how many ms it took, and the same times its GPUs.
local function end_gpu_time(owner)
  local started, gpus = unpack(redis.call('HMGET', keys.record, 'started_at', 'gpus'))
  if not started then
    return 0, 0
  end
  local ms = math.max(0, now_ms() - started)
  local gpu_ms = ms * tonumber(gpus or 1)
  add_usage(owner, 'gpu_ms', gpu_ms)
  count('gpu_ms', gpu_ms)
  return ms, gpu_ms
end

-- Charges a completed request and releases the rest of the reservation, which is the most that it can
-- cost; without a video, releases all of it. In millionths of a credit. A key without a balance has no
-- limit.
local function settle(owner, is_completed, gpu_ms)
  local bill = redis.call('HMGET', keys.record, 'reserved', 'price', 'gpu_price')
  local reserved = tonumber(bill[1] or 0)
  local charge = 0
  if is_completed then
    charge = math.min(reserved, (bill[2] or 0) + math.floor((bill[3] or 0) * gpu_ms / 1000 + 0.5))
    add_usage(owner, 'charged', charge)
    count('charged', charge)
    redis.call('HSET', keys.record, 'cost', text(charge))
  end
  local account = keys.api_key .. owner
  if reserved > 0 and redis.call('EXISTS', account) == 1 then
    redis.call('HINCRBY', account, 'reserved', text(-reserved))
    redis.call('HINCRBY', account, 'charged', text(charge))
  end
  if redis.call('HEXISTS', account, 'balance') == 1 then
    local balance = redis.call('HINCRBY', account, 'balance', text(reserved - charge))
    redis.call('HSET', keys.record, 'remaining', text(balance))
  end
end

local function leave_queue(id)
  redis.call('ZREM', keys.waiting, id)
  local owner = unpack(read(keys.record, 'owner'))
  if owner then
    redis.call('ZREM', keys.waiting .. ':' .. owner, id)
  end
  if redis.call('EXISTS', keys.waiting) == 0 then
    redis.call('DEL', keys.turns, keys.sequence) -- an empty queue begins anew
  end
end

-- Adds an ended request to the histograms. Fields of the record that end in _ms hold the length of each
-- stage of its run.
local function observe_end(status, ms, fields)
  local created, started = unpack(redis.call('HMGET', keys.record, 'created_at', 'started_at'))
  if started then
    observe('wait', math.max(0, started - created))
  end
  if status == 'COMPLETED' then
    observe('run', ms)
  end
  for index = 1, #fields, 2 do
    local stage = string.match(fields[index], '^(%l+)_ms$')
    if stage then
      observe('stage ' .. stage, tonumber(fields[index + 1]))
    end
  end
end

local function drop_preview(id)
  redis.call('HDEL', keys.record, 'preview')
  redis.call('DEL', keys.previews .. id)
end

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
local NOT_SENT = { webhook_url = true, history_days = true, history_params = true, history_entry = true }

-- Queues a delivery. The record may expire before the last attempt, so the delivery holds a copy of its
-- fields, each prefixed with a colon.
local function enqueue_delivery(id, owner, url, retention_ms)
  local delivery = { 'state', 'due', 'owner', owner, 'url', url, 'attempts', 0, 'before', 0,
                     'created_at', text(now_ms()),
                     'expires_at', text(redis.call('PEXPIRETIME', keys.record)) }
  local record = redis.call('HGETALL', keys.record)
  for index = 1, #record, 2 do
    if not NOT_SENT[record[index]] then
      delivery[#delivery + 1] = ':' .. record[index]
      delivery[#delivery + 1] = record[index + 1]
    end
  end
  redis.call('HSET', keys.webhook .. id, unpack(delivery))
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
local UNSUBSCRIBED = 'the webhook does not receive the ends of requests any more'

local function is_under_way(id)
  local attempts, noted = unpack(redis.call('HMGET', keys.webhook .. id, 'attempts', 'noted'))
  return (attempts or '0') ~= (noted or '0')
end

-- Gives up the waiting deliveries to a standing webhook. An attempt under way may still deliver; otherwise
-- take_webhooks gives up what is due after it.
local function give_up_standing(owner, webhook_id, reason, retention_ms)
  for _, id in ipairs(redis.call('SMEMBERS', backlog(':' .. webhook_id, owner))) do
    if not is_under_way(id) then
      give_up_delivery(id, owner, reason, retention_ms)
    end
  end
end

-- Queues a delivery to each standing webhook of the owner that wants the ends of requests. The record lists
-- them, as it may outlive a webhook.
local function enqueue_standing(id, owner, retention_ms)
  local ids = {}
  for _, webhook_id in ipairs(redis.pcall('HKEYS', keys.standing .. owner)) do
    local webhook = standing_webhook(owner, webhook_id)
    if webhook and webhook.is_heard then
      local delivery_id, log = id .. ':' .. webhook_id, keys.standing .. 'log:' .. webhook_id
      enqueue_delivery(delivery_id, owner, webhook.url, retention_ms)
      redis.call('HSET', keys.webhook .. delivery_id, 'webhook_id', webhook_id,
                 ':webhook_base', webhook.base)
      redis.call('LPUSH', log, delivery_id)
      redis.call('LTRIM', log, 0, MOST_LOGGED - 1)
      redis.call('PEXPIRE', log, text(RETRIES_MS + retention_ms))
      ids[#ids + 1] = delivery_id
    end
  end
  if ids[1] then
    redis.call('HSET', keys.record, 'deliveries', table.concat(ids, ' '))
  end
end

-- Queues all deliveries of an ended request.
local function enqueue_deliveries(id, owner, retention_ms)
  if is_revoked(owner) then
    return
  end
  local url = redis.call('HGET', keys.record, 'webhook_url')
  if url then
    enqueue_delivery(id, owner, url, retention_ms)
  end
  enqueue_standing(id, owner, retention_ms)
end

-- Removes requests whose records have expired from the list of an owner's requests.
local function drop_expired(owner, most)
  local expiries = keys.expiries .. owner
  local until_now = { expiries, '-inf', text(now_ms()), 'BYSCORE', 'LIMIT', 0, most }
  for _, id in ipairs(redis.call('ZRANGE', unpack(until_now))) do
    redis.call('ZREM', expiries, id)
    redis.call('ZREM', keys.history .. owner, id)
  end
end

-- Sets when an ended request leaves the owner's list, and removes some expired ones. The list itself
-- expires with its last request, when none of the owner's waits or runs.
local function list_expiry(id, owner, retention_ms)
  local expiries = keys.expiries .. owner
  drop_expired(owner, 10)
  if redis.call('ZSCORE', keys.history .. owner, id) then
    redis.call('ZADD', expiries, text(now_ms() + retention_ms), id)
  end
  local last = redis.call('ZRANGE', expiries, -1, -1, 'WITHSCORES')[2]
  if last and redis.call('EXISTS', keys.live .. owner) == 0 then
    redis.call('PEXPIREAT', expiries, text(last))
    redis.call('PEXPIREAT', keys.history .. owner, text(last))
  end
end

-- A deleted request leaves the owner's list. Its place is kept, since a page may begin after it.
local function leave_list(id, owner, retention_ms)
  local history = keys.history .. owner
  local place = redis.call('ZSCORE', history, id)
  if place then
    redis.call('ZREM', history, id)
    redis.call('ZREM', keys.expiries .. owner, id)
    redis.call('SET', history .. ':' .. id, place, 'PX', retention_ms)
  end
end

-- Entries in an owner's history at most. Above it the oldest is dropped.
local MOST_PAST = 10000

-- Adds an ended request to its owner's history, which has no video and outlives the record. The submit
-- said for how many days, and which parameters may be kept.
local function note_past(id, owner, status)
  local names = { 'history_days', 'deleted', 'created_at', 'cost', 'error', 'history_params', 'params' }
  local days, deleted, created, cost, error, kept, params =
    unpack(redis.call('HMGET', keys.record, unpack(names)))
  if not days or deleted or is_revoked(owner) then
    return
  end
  local now, past, times = now_ms(), keys.past .. owner, keys.past .. 'times:' .. owner
  -- The end must not fail where a key has another type.
  local entry = redis.pcall('XADD', past, 'MAXLEN', MOST_PAST, '*', 'id', id, 'status', status,
                           'created_at', created, 'latency_ms', text(math.max(0, now - created)),
                           'cost', cost or '0', 'error', error or '', 'params', kept or params)
  if type(entry) == 'table' then
    return
  end
  redis.call('HSET', keys.record, 'history_entry', entry)
  redis.call('XTRIM', past, 'MINID', text(now - days * DAY_MS))
  redis.pcall('ZADD', times, string.match(entry, '%d+'), id)
  redis.pcall('ZREMRANGEBYRANK', times, 0, -MOST_PAST - 1)
  redis.pcall('ZREMRANGEBYSCORE', times, '-inf', '(' .. text(now - days * DAY_MS))
  redis.call('PEXPIRE', past, text(days * DAY_MS))
  redis.call('PEXPIRE', times, text(days * DAY_MS))
end

-- The only way into a final state. The record, its place in the owner's list and its idempotency key
-- expire after `usual_ms`, or after the record's own `retention_ms`; RQ's keys are deleted at once.
local function finish(id, status, usual_ms, fields)
  local retention_ms = redis.call('HGET', keys.record, 'retention_ms') or usual_ms
  local owner = redis.call('HGET', keys.record, 'owner')
  local ms, gpu_ms = end_gpu_time(owner)
  redis.call('HSET', keys.record, 'status', status, 'ended_at', text(now_ms()), unpack(fields))
  settle(owner, status == 'COMPLETED', gpu_ms)
  local outcome = redis.call('HGET', keys.record, 'error_code') or 'completed'
  add_usage(owner, outcome, 1)
  count('ended ' .. outcome)
  observe_end(status, ms, fields)
  note_past(id, owner, status)
  redis.call('SREM', keys.live .. owner, id)
  list_expiry(id, owner, retention_ms)
  redis.call('PEXPIRE', keys.record, retention_ms)
  local key = redis.call('HGET', keys.record, 'idempotency_key')
  if key then
    redis.call('PEXPIRE', key, retention_ms)
  end
  drop_preview(id)
  redis.call('ZREM', keys.leases, id)
  leave_queue(id)
  redis.call('LREM', keys.intermediate, 0, id)
  redis.call('DEL', keys.rq_job)
  if redis.call('HEXISTS', keys.record, 'deleted') == 0 then
    enqueue_deliveries(id, owner, usual_ms)
  end
end

-- Back to QUEUED, first in the queue, as the request has waited before.
local function requeue(id, reason)
  local first = redis.call('ZRANGE', keys.waiting, 0, 0, 'WITHSCORES')[2] or '0'
  local owner = redis.call('HGET', keys.record, 'owner')
  end_gpu_time(owner)
  redis.call('HSET', keys.record, 'status', 'QUEUED')
  redis.call('HDEL', keys.record, 'run', 'worker', 'gpus', 'step', 'stage', 'progress',
             'started_at')
  drop_preview(id)
  redis.call('ZREM', keys.leases, id)
  enter_queue(id, owner, math.min(tonumber(first), 0) - 1)
  redis.call('LREM', keys.intermediate, 0, id)
  redis.call('LREM', keys.rq_queue, 0, id)
  redis.call('LPUSH', keys.rq_queue, id)
  count('requeues ' .. reason)
end

-- Ends a cancelled request FAILED. Returns its error, or false: it is not cancelled.
local function end_if_cancelled(id, retention_ms)
  local error = redis.call('HGET', keys.record, 'cancelled')
  if error then
    finish(id, 'FAILED', retention_ms, { 'error', error, 'error_code', 'cancelled' })
  end
  return error
end

-- After a crash: requeues the request, or ends it FAILED after its last attempt.
local function retry(id, most_attempts, retention_ms, error)
  if end_if_cancelled(id, retention_ms) then
    return 'failed'
  end
  if tonumber(redis.call('HGET', keys.record, 'attempt')) >= most_attempts then
    finish(id, 'FAILED', retention_ms, { 'error', error, 'error_code', 'worker_lost' })
    return 'failed'
  end
  requeue(id, 'lost')
  return 'requeued'
end
