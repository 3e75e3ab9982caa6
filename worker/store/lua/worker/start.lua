-- QUEUED -> PROCESSING under a lease. The run token fences all later writes of this attempt.
-- ARGV: id, run, worker, lease in ms, the mark of the store that the worker writes to, or '', how many GPUs it
-- has for the run, the identity of its engine or '', and its queues; see `LiveWorker`.
-- Returns the fields of the record that a worker needs, and those of a `source`, as names and values; or nil:
-- nothing to do, or the same video is being made for another request; or 'other_store': no gateway could
-- serve the video, and the request waits on for another worker.
local id, run = ARGV[1], ARGV[2]
local now = now_ms()
local HOUR_MS = 3600000

local function takes_from(queue, loras)
  for index = 8, #ARGV do
    local name, offered = parts_of(ARGV[index])
    if name == queue and has_all(offered, loras) then
      return true
    end
  end
end

local record = read(keys.record, 'status', 'run', 'queue', 'loras', 'owner', 'cache_key', 'frames_key')
if not record[1] then
  leave_all_queues(id)
  return nil
end
local queue = record[3] or DEFAULT_MODEL
if not takes_from(queue, record[4] or '') then
  leave_all_queues(id, queue) -- it was in a queue that is not its own
  return nil
end
use_queue(queue)
local cache_key = record[1] == 'QUEUED' and record[6]
if cache_key and waits_for_twin(cache_key) then
  return nil -- it stays popped until that run ends
end
redis.call('LREM', keys.intermediate, 0, id)
local source = record[6] and source_of(record[7], ARGV[7]) or {}
if record[1] == 'QUEUED' then
  local store = redis.call('GET', keys.store)
  if store and ARGV[5] ~= '' and store ~= ARGV[5] then
    redis.call('LREM', keys.rq_queue, 0, id)
    redis.call('LPUSH', keys.rq_queue, id)
    return 'other_store'
  end
  redis.call('HINCRBY', keys.record, 'attempt', 1)
  redis.call('HSET', keys.record, 'status', 'PROCESSING', 'run', run, 'worker', ARGV[3],
             'gpus', ARGV[6], 'started_at', text(now))
  if cache_key then
    redis.call('HSET', keys.record, 'identity', ARGV[7], 'store', ARGV[5])
    become_maker(id, cache_key)
    count(source[1] and 'cache retimed' or 'cache miss')
  end
  local place = redis.call('ZSCORE', keys.waiting, id)
  if place and tonumber(place) >= 0 then
    redis.call('HSET', keys.turns, record[5], place)
  end
  if ARGV[9] then -- a worker of several queues; see `rank`
    redis.pcall('HSET', keys.served, record[5], redis.pcall('HINCRBY', keys.served, '', 1))
    redis.pcall('PEXPIRE', keys.served, HOUR_MS)
  end
  leave_queue(id)
  redis.call('LREM', keys.rq_queue, 0, id) -- a slow pop may have been recovered meanwhile
elseif record[1] ~= 'PROCESSING' or record[2] ~= run then
  leave_queue(id) -- a place without a waiting request would be popped again and again
  return nil
end
redis.call('ZADD', keys.leases, text(now + ARGV[4]), id)
append(source, named(keys.record, 'status', 'attempt', 'params', 'owner', 'created_at', 'started_at',
             'scenario', 'traceparent', 'draft_steps', 'draft_of', 'model'))
return source
