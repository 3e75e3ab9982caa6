-- The data of a forecast.
-- ARGV: most waiting requests to look at.
-- Returns, as names and values: now_ms, the paces of runs, the live workers, the runs (each as names and
-- values), and of the first waiting requests the ids and their work.
local now = now_ms()
local runs = {}
for _, id in ipairs(redis.call('ZRANGE', keys.leases, 0, -1)) do
  runs[#runs + 1] = named(keys.record .. id, 'worker', 'work', 'step', 'stage', 'progress',
                          'started_at')
end
local waiting = redis.call('ZRANGE', keys.waiting, 0, ARGV[1] - 1)
local works = {}
for index, id in ipairs(waiting) do
  works[index] = read(keys.record .. id, 'work')[1] or false
end
return {
  'now_ms', now,
  'paces', redis.call('HGETALL', keys.paces),
  'workers', redis.call('ZRANGEBYSCORE', keys.workers, text(now), '+inf'),
  'runs', runs,
  'waiting', waiting,
  'works', works,
}
