-- Accept a request: nothing or everything of record, place in the queue, and RQ's job.
-- ARGV: id, most waiting, needs a live worker (0 or 1), owner, params, RQ's fields …
local id = ARGV[1]

if redis.call('EXISTS', keys.record) == 1 then
  return 'accepted' -- the first reply was lost on its way and the client library asked again
end
if ARGV[3] == '1' and redis.call('ZCOUNT', keys.workers, now_ms(), '+inf') == 0 then
  return 'no_worker'
end
if redis.call('ZCARD', keys.waiting) >= tonumber(ARGV[2]) then
  return 'queue_full'
end
redis.call('HSET', keys.record, 'status', 'QUEUED', 'owner', ARGV[4], 'params', ARGV[5],
           'attempt', 0, 'created_at', text(now_ms()))
redis.call('ZADD', keys.waiting, redis.call('INCR', keys.sequence), id)
redis.call('HSET', keys.rq_job, unpack(ARGV, 6))
redis.call('SADD', keys.rq_queues, keys.rq_queue)
redis.call('RPUSH', keys.rq_queue, id)
return 'accepted'
