-- All that a forecast is made of.
-- ARGV: most waiting requests to look at.
-- Returns now; how fast runs were; the live workers; of each run its worker, work, step, stage and
-- start; and of the first waiting ones the ids and their work.
local now = now_ms()
local runs = {}
for _, id in ipairs(redis.call('ZRANGE', keys.leases, 0, -1)) do
  local run = redis.call('HMGET', keys.record .. id, 'worker', 'work', 'step', 'stage', 'started_at')
  runs[#runs + 1] = run
end
local waiting = redis.call('ZRANGE', keys.waiting, 0, ARGV[1] - 1)
local works = {}
for index, id in ipairs(waiting) do
  works[index] = redis.call('HGET', keys.record .. id, 'work')
end
return { now, redis.call('HGETALL', keys.paces),
         redis.call('ZRANGEBYSCORE', keys.workers, text(now), '+inf'),
         runs, waiting, works }
