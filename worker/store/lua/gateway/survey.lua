-- The broker's figures for /metrics, at one moment, in a time that does not grow with the queue.
-- Returns, as names and values: the queues (of each its name, how many requests wait, how many run, for
-- how many ms the oldest has waited), the live workers, the sums (as names and values), and how many deliveries
-- are due.
local now = now_ms()

local function age_of_oldest()
  -- It is at the head of RQ's list, behind those that have run before.
  local again = redis.call('ZCOUNT', keys.waiting, '-inf', '(0')
  local first = redis.call('LRANGE', keys.rq_queue, 0, again)
  for _, id in ipairs(redis.call('LRANGE', keys.intermediate, 0, -1)) do
    first[#first + 1] = id
  end
  local oldest = now
  for _, id in ipairs(first) do
    local record = read(keys.record .. id, 'status', 'created_at')
    if record[1] == 'QUEUED' then
      oldest = math.min(oldest, tonumber(record[2]))
    end
  end
  return now - oldest
end

local queues = {}
for _, queue in ipairs(QUEUES) do
  use_queue(queue)
  queues[#queues + 1] = { queue, redis.call('ZCARD', keys.waiting), redis.call('ZCARD', keys.leases),
                          age_of_oldest() }
end

local due_webhooks = 0
for _, owner in ipairs(redis.call('ZRANGE', keys.webhooks, 0, -1)) do
  due_webhooks = due_webhooks + redis.call('ZCARD', keys.webhooks .. ':' .. owner)
end

return {
  'queues', queues,
  'workers', redis.call('ZRANGEBYSCORE', keys.workers, text(now), '+inf'),
  'sums', redis.call('HGETALL', keys.metrics),
  'due_webhooks', due_webhooks,
}
