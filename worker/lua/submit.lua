-- Accept a request: nothing or everything of record, place in the queue, and RQ's job.
-- ARGV: id, most waiting, needs a live worker (0 or 1), owner, the owner's share of the queue,
-- idempotency key of the broker or '', fingerprint, params, RQ's fields …
-- Returns what became of it and, when it was made before, the first request's id.
local id, owner, key, fingerprint = ARGV[1], ARGV[4], ARGV[6], ARGV[7]

if redis.call('EXISTS', keys.record) == 1 then
  return { 'accepted' } -- the first reply was lost on its way and the client library asked again
end
if key ~= '' then
  local first = redis.call('HMGET', key, 'request_id', 'fingerprint')
  if first[1] then
    return { first[2] == fingerprint and 'replayed' or 'conflict', first[1] }
  end
end
if ARGV[3] == '1' and redis.call('ZCOUNT', keys.workers, now_ms(), '+inf') == 0 then
  return { 'no_worker' }
end
-- A queue that others have filled still takes an owner's first.
local mine = keys.waiting .. ':' .. owner
if redis.call('ZCARD', keys.waiting) >= tonumber(ARGV[2]) and redis.call('EXISTS', mine) == 1 then
  return { 'queue_full' }
end
if key ~= '' then
  redis.call('HSET', key, 'request_id', id, 'fingerprint', fingerprint)
  redis.call('HSET', keys.record, 'idempotency_key', key)
end
redis.call('HSET', keys.record, 'status', 'QUEUED', 'owner', owner, 'params', ARGV[8],
           'attempt', 0, 'created_at', text(now_ms()))

-- Start-time fair queueing (Goyal, Vin and Cheng, 1996): an owner's request stands one turn after
-- the one before, or less with a larger share, and never before the head of the queue. Within a
-- turn, who came first goes first.
local TURN = 2 ^ 32
local head = redis.call('ZRANGE', keys.waiting, 0, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
if not head[1] then
  redis.call('DEL', keys.turns) -- nobody waits for a turn: nobody has had more than another
end
local last = redis.call('ZRANGE', mine, -1, -1, 'WITHSCORES')
local before = last[2] or redis.call('HGET', keys.turns, owner)
local place = tonumber(head[2] or 0)
if before then
  place = math.max(place, before + TURN / ARGV[5])
end
enter_queue(id, owner, place + redis.call('INCR', keys.sequence))

redis.call('HSET', keys.rq_job, unpack(ARGV, 9))
redis.call('SADD', keys.rq_queues, keys.rq_queue)
redis.call('RPUSH', keys.rq_queue, id)
return { 'accepted' }
