-- How a run ends.

-- Adds an ended request to the histograms. Fields of the record that end in _ms hold the length of each
-- stage of its run.
local function observe_end(status, ms, is_cached, fields)
  local created, started = unpack(redis.call('HMGET', keys.record, 'created_at', 'started_at'))
  if started then
    observe('wait', math.max(0, started - created))
  end
  if status == 'COMPLETED' and not is_cached then
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

-- Completes a waiting request with the video of a maker; below, as `finish` is its last step.
local complete_with

-- Of a maker, the end of its twins or of its part; any other leaves them.
local function end_among_twins(id, cache_key, status, usual_ms)
  local twins = keys.twins .. cache_key
  redis.call('SREM', twins, id)
  if status ~= 'COMPLETED' then
    return resign_as_maker(id, cache_key)
  end
  local frames_key, is_retimed = unpack(read(keys.record, 'frames_key', 'cached'))
  -- A retimed video is no source beside its own one: its owner may delete it earlier.
  local is_source = frames_key and not (is_retimed and maker_of(frames_key))
  for _, made in ipairs({ cache_key, is_source and frames_key or nil }) do
    redis.call('SET', keys.makers .. made, id, 'PX', redis.call('PTTL', keys.record))
  end
  for _, twin in ipairs(redis.call('SMEMBERS', twins)) do
    if read(RECORD .. twin, 'status')[1] == 'QUEUED' then
      complete_with(id, twin, usual_ms)
      count('cache wait')
    end
  end
  redis.call('DEL', twins)
  use_request(id)
end

-- The only way into a final state. The record, its place in the owner's list and its idempotency key
-- expire after `usual_ms`, or after the record's own `retention_ms`; RQ's keys are deleted at once.
local function finish(id, status, usual_ms, fields)
  local retention_ms = redis.call('HGET', keys.record, 'retention_ms') or usual_ms
  local owner, cache_key, has_run =
    unpack(redis.call('HMGET', keys.record, 'owner', 'cache_key', 'started_at'))
  local ms, gpu_ms = end_gpu_time(owner)
  redis.call('HSET', keys.record, 'status', status, 'ended_at', text(now_ms()), unpack(fields))
  local is_cached = redis.call('HEXISTS', keys.record, 'cached') == 1
  settle(owner, status == 'COMPLETED', gpu_ms)
  local outcome = redis.call('HGET', keys.record, 'error_code') or 'completed'
  add_usage(owner, outcome, 1)
  count('ended ' .. outcome)
  observe_end(status, ms, is_cached, fields)
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
  if is_cached then
    add_usage(owner, 'cached', 1)
  end
  if redis.call('HEXISTS', keys.record, 'deleted') == 0 then
    enqueue_deliveries(id, owner, usual_ms)
  end
  if status == 'COMPLETED' then
    notify_of_budget(owner, usual_ms)
  end
  if cache_key and (has_run or status ~= 'COMPLETED') then
    end_among_twins(id, cache_key, status, usual_ms)
  end
end

function complete_with(maker, id, usual_ms)
  use_request(id)
  share_files(maker, id, usual_ms)
  finish(id, 'COMPLETED', usual_ms, fields_of_twin(maker))
  redis.call('LREM', keys.rq_queue, 0, id)
end

-- Back to QUEUED, first in the queue, as the request has waited before.
local function requeue(id, reason)
  local first = redis.call('ZRANGE', keys.waiting, 0, 0, 'WITHSCORES')[2] or '0'
  local owner = redis.call('HGET', keys.record, 'owner')
  end_gpu_time(owner)
  local cache_key = redis.call('HGET', keys.record, 'cache_key')
  redis.call('HSET', keys.record, 'status', 'QUEUED')
  redis.call('HDEL', keys.record, 'run', 'worker', 'gpus', 'step', 'stage', 'progress',
             'started_at', 'identity', 'store')
  if cache_key then
    resign_as_maker(id, cache_key)
    join_twins(id, cache_key)
  end
  drop_preview(id)
  redis.call('ZREM', keys.leases, id)
  enter_queue(id, owner, math.min(tonumber(first), 0) - 1, redis.call('HGET', keys.record, 'loras'))
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
