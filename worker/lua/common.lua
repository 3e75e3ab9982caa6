-- Put before every script: the keys, in the order of keyspace.py, and what scripts share.
local keys = {
  record = KEYS[1], rq_job = KEYS[2], waiting = KEYS[3], sequence = KEYS[4], leases = KEYS[5],
  workers = KEYS[6], rq_queue = KEYS[7], intermediate = KEYS[8], rq_queues = KEYS[9],
  turns = KEYS[10], looks = KEYS[11],
  -- These are completed with an owner, or with a day.
  api_key = KEYS[12], live = KEYS[13], rate = KEYS[14], usage = KEYS[15],
  history = KEYS[16], expiries = KEYS[17],
}

-- Time is the broker's own, so that hosts' clocks do not matter.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function text(number)
  return string.format('%.0f', number)
end

-- The queue stands twice: all requests in one set, and each owner's in a set of its own. Below 0 are
-- those that have run before.
local function enter_queue(id, owner, place)
  place = string.format('%.17g', place)
  redis.call('ZADD', keys.waiting, place, id)
  redis.call('ZADD', keys.waiting .. ':' .. owner, place, id)
end

local DAY_MS = 24 * 60 * 60 * 1000
local USAGE_KEPT_SECONDS = 401 * 24 * 60 * 60

-- One more line of the daily sums.
local function use(owner, metric, amount)
  local today = keys.usage .. text(math.floor(now_ms() / DAY_MS))
  redis.call('HINCRBY', today, owner .. ' ' .. metric, text(amount))
  redis.call('EXPIRE', today, USAGE_KEPT_SECONDS, 'NX')
end

-- A run is over, however it ended: for how many ms it had a GPU.
local function leave_gpu(owner)
  local started = redis.call('HGET', keys.record, 'started_at')
  if not started then
    return 0
  end
  local ms = math.max(0, now_ms() - started)
  use(owner, 'gpu_ms', ms)
  return ms
end

-- Credits are whole millionths. What was reserved at the submit is the most that a request can cost;
-- the rest of it, or all when there is no video, is free again. A key without a balance has no limit.
local function settle(owner, is_completed, gpu_ms)
  local bill = redis.call('HMGET', keys.record, 'reserved', 'price', 'gpu_price')
  local reserved = tonumber(bill[1] or 0)
  local charge = 0
  if is_completed then
    charge = math.min(reserved, (bill[2] or 0) + math.floor((bill[3] or 0) * gpu_ms / 1000 + 0.5))
    use(owner, 'charged', charge)
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
  local owner = redis.call('HGET', keys.record, 'owner')
  if owner then
    redis.call('ZREM', keys.waiting .. ':' .. owner, id)
  end
  if redis.call('EXISTS', keys.waiting) == 0 then
    redis.call('DEL', keys.turns, keys.sequence) -- an empty queue begins anew
  end
end

-- Out of the list of an owner's requests with those whose records are gone.
local function forget_gone(owner, most)
  local expiries = keys.expiries .. owner
  local until_now = { expiries, '-inf', text(now_ms()), 'BYSCORE', 'LIMIT', 0, most }
  for _, id in ipairs(redis.call('ZRANGE', unpack(until_now))) do
    redis.call('ZREM', expiries, id)
    redis.call('ZREM', keys.history .. owner, id)
  end
end

-- Each end makes room for some that went before. The list itself goes with the last of them, when
-- nothing of the owner's waits or runs.
local function note_end(id, owner, retention_ms)
  local expiries = keys.expiries .. owner
  forget_gone(owner, 10)
  redis.call('ZADD', expiries, text(now_ms() + retention_ms), id)
  if redis.call('EXISTS', keys.live .. owner) == 0 then
    local last = redis.call('ZRANGE', expiries, -1, -1, 'WITHSCORES')[2]
    redis.call('PEXPIREAT', expiries, text(last))
    redis.call('PEXPIREAT', keys.history .. owner, text(last))
  end
end

-- The only way into a terminal state. The record, and the idempotency key that leads to it, go an
-- hour later, or when the record itself says; all that RQ holds, at once.
local function finish(id, status, retention_ms, fields)
  retention_ms = redis.call('HGET', keys.record, 'retention_ms') or retention_ms
  local owner = redis.call('HGET', keys.record, 'owner')
  local gpu_ms = leave_gpu(owner)
  redis.call('HSET', keys.record, 'status', status, 'ended_at', text(now_ms()), unpack(fields))
  settle(owner, status == 'COMPLETED', gpu_ms)
  use(owner, redis.call('HGET', keys.record, 'error_code') or 'completed', 1)
  redis.call('SREM', keys.live .. owner, id)
  note_end(id, owner, retention_ms)
  redis.call('PEXPIRE', keys.record, retention_ms)
  local key = redis.call('HGET', keys.record, 'idempotency_key')
  if key then
    redis.call('PEXPIRE', key, retention_ms)
  end
  redis.call('ZREM', keys.leases, id)
  leave_queue(id)
  redis.call('LREM', keys.intermediate, 0, id)
  redis.call('DEL', keys.rq_job)
end

-- Back to QUEUED, before everything that waits: it has waited already.
local function requeue(id)
  local first = redis.call('ZRANGE', keys.waiting, 0, 0, 'WITHSCORES')[2] or '0'
  local owner = redis.call('HGET', keys.record, 'owner')
  leave_gpu(owner)
  redis.call('HSET', keys.record, 'status', 'QUEUED')
  redis.call('HDEL', keys.record, 'run', 'worker', 'step', 'started_at')
  redis.call('ZREM', keys.leases, id)
  enter_queue(id, owner, math.min(tonumber(first), 0) - 1)
  redis.call('LREM', keys.intermediate, 0, id)
  redis.call('LREM', keys.rq_queue, 0, id)
  redis.call('LPUSH', keys.rq_queue, id)
end

-- To the end, when a run stopped early that its owner did not want any more.
local function end_if_cancelled(id, retention_ms)
  local error = redis.call('HGET', keys.record, 'cancelled')
  if error then
    finish(id, 'FAILED', retention_ms, { 'error', error, 'error_code', 'cancelled' })
  end
  return error
end

-- After a crash: another attempt, or the end.
local function retry(id, most_attempts, retention_ms, error)
  if end_if_cancelled(id, retention_ms) then
    return 'failed'
  end
  if tonumber(redis.call('HGET', keys.record, 'attempt')) >= most_attempts then
    finish(id, 'FAILED', retention_ms, { 'error', error, 'error_code', 'worker_lost' })
    return 'failed'
  end
  requeue(id)
  return 'requeued'
end
