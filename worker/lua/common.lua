-- Put before every script: the keys, in the order of keyspace.py, and what scripts share.
local keys = {
  record = KEYS[1], rq_job = KEYS[2], waiting = KEYS[3], sequence = KEYS[4], leases = KEYS[5],
  workers = KEYS[6], rq_queue = KEYS[7], intermediate = KEYS[8], rq_queues = KEYS[9],
  turns = KEYS[10], looks = KEYS[11],
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

-- The only way into a terminal state. The record, and the idempotency key that leads to it, go an
-- hour later; all that RQ holds, at once.
local function finish(id, status, retention_ms, fields)
  redis.call('HSET', keys.record, 'status', status, 'ended_at', text(now_ms()), unpack(fields))
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
  redis.call('HSET', keys.record, 'status', 'QUEUED')
  redis.call('HDEL', keys.record, 'run', 'worker', 'step', 'started_at')
  redis.call('ZREM', keys.leases, id)
  enter_queue(id, redis.call('HGET', keys.record, 'owner'), math.min(tonumber(first), 0) - 1)
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
