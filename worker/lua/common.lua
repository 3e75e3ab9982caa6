-- Put before every script: the keys, in the order of keyspace.py, and what scripts share.
local keys = {
  record = KEYS[1], rq_job = KEYS[2], waiting = KEYS[3], sequence = KEYS[4], leases = KEYS[5],
  workers = KEYS[6], rq_queue = KEYS[7], intermediate = KEYS[8], rq_queues = KEYS[9],
}

-- Time is the broker's own, so that hosts' clocks do not matter.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function text(number)
  return string.format('%.0f', number)
end

-- The only way into a terminal state. The record and all that RQ holds go an hour later, or at once.
local function finish(id, status, retention_ms, fields)
  redis.call('HSET', keys.record, 'status', status, 'ended_at', text(now_ms()), unpack(fields))
  redis.call('PEXPIRE', keys.record, retention_ms)
  redis.call('ZREM', keys.leases, id)
  redis.call('ZREM', keys.waiting, id)
  redis.call('LREM', keys.intermediate, 0, id)
  redis.call('DEL', keys.rq_job)
end

-- Back to QUEUED, before everything that waits: it has waited already.
local function requeue(id)
  local first = redis.call('ZRANGE', keys.waiting, 0, 0, 'WITHSCORES')[2] or '0'
  redis.call('HSET', keys.record, 'status', 'QUEUED')
  redis.call('HDEL', keys.record, 'run', 'worker', 'step', 'started_at')
  redis.call('ZREM', keys.leases, id)
  redis.call('ZADD', keys.waiting, math.min(tonumber(first), 0) - 1, id)
  redis.call('LREM', keys.intermediate, 0, id)
  redis.call('LREM', keys.rq_queue, 0, id)
  redis.call('LPUSH', keys.rq_queue, id)
end

-- After a crash: another attempt, or the end.
local function retry(id, most_attempts, retention_ms, error)
  if tonumber(redis.call('HGET', keys.record, 'attempt')) >= most_attempts then
    finish(id, 'FAILED', retention_ms, { 'error', error, 'error_code', 'worker_lost' })
    return 'failed'
  end
  requeue(id)
  return 'requeued'
end
