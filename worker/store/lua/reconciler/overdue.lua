-- What a reconciler may have to repair.
-- ARGV: '', lease in ms, longest gap in ms, the id of a gateway, or '' for a worker.
-- Returns, as names and values: the ids whose lease has expired, the ids popped and not started
-- (without those that wait for the run of a twin), how many waiting requests are missing from both of RQ's
-- lists, and for how many ms reconcilers have watched without a gap (an outage, or a clock that was set). Nil
-- for a gateway, while a worker or another gateway looks: its last look is the lease.
local LOOK_LEASE_MS, LEAST_BETWEEN_MS = 2000, 500

local now = now_ms()
local last, since, by = unpack(redis.call('HMGET', keys.looks, 'last', 'since', 'by'))
local is_held = last and now >= tonumber(last) and now - last < LOOK_LEASE_MS
if ARGV[4] ~= '' and is_held and by ~= ARGV[4] then
  return nil
end
if not last or now < tonumber(last) or now - last > tonumber(ARGV[3]) then
  since = text(now)
end
-- Each write is one on the disk: the many looks of a large fleet note one every half second.
if not last or math.abs(now - last) >= LEAST_BETWEEN_MS or by ~= ARGV[4] then
  redis.call('HSET', keys.looks, 'last', text(now), 'since', since, 'by', ARGV[4])
end

-- No lease is that long: the clock was set back. Live workers send a heartbeat within a second.
local farthest = text(now + ARGV[2] + 60000)
redis.call('ZREMRANGEBYSCORE', keys.workers, farthest, '+inf')

local expired, popped, missing = {}, {}, 0
for _, queue in ipairs(QUEUES) do
  use_queue(queue)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', keys.leases, farthest, '+inf')) do
    redis.call('ZADD', keys.leases, text(now + ARGV[2]), id)
  end
  append(expired, redis.call('ZRANGEBYSCORE', keys.leases, '-inf', text(now)))
  local taken = redis.call('LRANGE', keys.intermediate, 0, -1)
  for _, id in ipairs(taken) do
    if not waits_for_twin(read(RECORD .. id, 'cache_key')[1]) then
      popped[#popped + 1] = id
    end
  end
  local unlisted = redis.call('ZCARD', keys.waiting) - redis.call('LLEN', keys.rq_queue) - #taken
  missing = missing + math.max(0, unlisted)
end
return {
  'expired', expired,
  'popped', popped,
  'missing', missing,
  'watched_ms', now - since,
}
