-- The data of a forecast.
-- ARGV: most waiting requests of each queue to look at.
-- Returns, as names and values: now_ms, the paces of runs, the live workers, the runs (each as names and
-- values), and the queues: of each its name, and of its first waiting requests the ids, their work (false for
-- one that a twin's run completes), the steps that their drafts have done, the times of their submit, and their
-- owners, as numbers; and of each owner the number of its latest start, see `rank`.
local now = now_ms()
local runs, queues = {}, {}
local numbers, served = {}, {}
local function number_of(owner)
  if not numbers[owner] then
    served[#served + 1] = read(keys.served, owner)[1] or '0'
    numbers[owner] = #served
  end
  return numbers[owner]
end

-- Whether a twin runs, or waits at an earlier place.
local expected = {}
local function is_made_by_twin(cache_key)
  if not cache_key then
    return false
  end
  local is_made = expected[cache_key] or waits_for_twin(cache_key)
  expected[cache_key] = true
  return is_made
end

for _, queue in ipairs(QUEUES) do
  use_queue(queue)
  for _, id in ipairs(redis.call('ZRANGE', keys.leases, 0, -1)) do
    local run = named(keys.record .. id, 'worker', 'work', 'step', 'stage', 'progress', 'started_at')
    append(run, { 'queue', queue })
    runs[#runs + 1] = run
  end
  local waiting = redis.call('ZRANGE', keys.waiting, 0, ARGV[1] - 1)
  local works, firsts, times, owners = {}, {}, {}, {}
  for index, id in ipairs(waiting) do
    local record = read(keys.record .. id, 'work', 'created_at', 'first_step', 'owner', 'cache_key')
    works[index] = not is_made_by_twin(record[5]) and record[1] or false
    firsts[index], times[index] = record[3] or '0', record[2] or '0'
    owners[index] = number_of(record[4] or '')
  end
  queues[#queues + 1] = { queue, waiting, works, firsts, times, owners }
end
return {
  'now_ms', now,
  'paces', redis.call('HGETALL', keys.paces),
  'workers', redis.call('ZRANGEBYSCORE', keys.workers, text(now), '+inf'),
  'runs', runs,
  'queues', queues,
  'served', served,
}
