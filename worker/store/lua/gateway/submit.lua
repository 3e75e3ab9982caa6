-- Accepts a request: writes all of record, place in the queue, reserved credits and RQ's job, or nothing.
-- ARGV: id, most waiting for the model, 'needs_worker' or 'replay' or 'dry_run' or '', owner, idempotency key of
-- the broker or '', fingerprint, price and price of a GPU second in millionths, most GPU seconds charged, model,
-- params, number of names and values that follow, further fields of the record …, RQ's fields …
-- Returns the outcome; when replayed, with the first request's id; without a worker, with the model; when the
-- owner has a rate limit, with the limit, the requests left, and ms until there is one more. A dry run makes the
-- same checks, returns the request's place in the queue, and writes nothing.
local id, owner, key, fingerprint = ARGV[1], ARGV[4], ARGV[5], ARGV[6]
local model = ARGV[10]
local is_dry_run = ARGV[3] == 'dry_run'
local MINUTE_MS = 60000

local function answer(outcome, ...)
  if not is_dry_run then
    redis.pcall('HINCRBY', keys.metrics, 'submits ' .. outcome, 1) -- refused when the memory is full
  end
  return { outcome, ... }
end

-- Whether a worker runs the model. One of a release without models runs the default one.
local function runs_model(worker)
  local models = string.match(worker, '"models":(%b[])') -- see `LiveWorker`
  if not models then
    return model == DEFAULT_MODEL
  end
  return string.find(models, '"' .. model .. '"', 1, true)
end

-- Whether a live worker does. In portions: of a large fleet, one of the first does.
local function takes_requests()
  local first, most = 0, 10
  repeat
    local workers = redis.call('ZRANGE', keys.workers, text(now_ms()), '+inf', 'BYSCORE',
                               'LIMIT', first, most)
    for _, worker in ipairs(workers) do
      if not string.find(worker, '"pause":"[^"]') and runs_model(worker) then
        return true
      end
    end
    first = first + most
  until #workers < most
  return false
end

if model ~= DEFAULT_MODEL then
  use_queue(model)
end
if redis.call('EXISTS', keys.record) == 1 then
  return { 'accepted' } -- the client library's retry after a lost reply
end
if key ~= '' then
  local first = redis.call('HMGET', key, 'request_id', 'fingerprint')
  if first[1] then
    return answer(first[2] == fingerprint and 'replayed' or 'conflict', first[1])
  end
end
if ARGV[3] == 'replay' then
  return { 'not_replayed' }
end
if ARGV[3] == 'needs_worker' and not takes_requests() then
  return answer('no_worker', model)
end

-- The key's limits now: it may have changed since the gateway authenticated it.
local now = now_ms()
local account = keys.api_key .. owner
local names = { 'revoked_at', 'expires_at', 'priority', 'requests_per_minute', 'jobs_at_once', 'balance',
                'monthly_cap' }
local revoked, expires, priority, per_minute, at_once, balance, monthly_cap =
  unpack(redis.call('HMGET', account, unpack(names)))
if revoked or (expires and now >= tonumber(expires)) then
  return answer('key_ended')
end
-- A full queue still takes an owner's first request.
local mine = keys.waiting .. ':' .. owner
if redis.call('ZCARD', keys.waiting) >= tonumber(ARGV[2]) and redis.call('EXISTS', mine) == 1 then
  return answer('queue_full')
end
local live = keys.live .. owner
if at_once and redis.call('SCARD', live) >= tonumber(at_once) then
  return answer('too_many_jobs', tonumber(at_once))
end
local reserved = ARGV[7] + math.ceil(ARGV[8] * ARGV[9])
if balance and reserved > 0 and reserved > tonumber(balance) then
  return answer('too_few_credits', balance, text(reserved),
                redis.call('HGET', account, 'reserved') or '0')
end
if monthly_cap and reserved > 0 then
  local month, held = this_month(owner), tonumber(redis.call('HGET', account, 'reserved') or 0)
  if month.charged + held + reserved > tonumber(monthly_cap) then
    return answer('over_monthly_cap', text(month.ends_at), monthly_cap, text(reserved), text(month.charged),
                  text(held))
  end
end
local recent, rate = keys.rate .. owner, {}
if per_minute then
  -- A sliding minute. Times in the future, from before the clock was set back, do not count.
  local since, limit = '(' .. text(now - MINUTE_MS), tonumber(per_minute)
  local made = redis.call('ZCOUNT', recent, since, text(now))
  -- One more may be submitted when this request is a minute old.
  local first = redis.call('ZRANGE', recent, since, text(now), 'BYSCORE',
                           'LIMIT', math.max(0, made - limit), 1, 'WITHSCORES')
  rate = { limit, math.max(0, limit - made - 1), (first[2] or now) + MINUTE_MS - now }
  if made >= limit then
    return answer('too_fast', unpack(rate))
  end
end

-- Start-time fair queueing (Goyal, Vin and Cheng, 1996): an owner's request comes one turn after its last
-- one, less with a higher priority, and never before the head of the queue. Within a turn: first come,
-- first served.
local TURN = 2 ^ 32
local head = redis.call('ZRANGE', keys.waiting, 0, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
local last = redis.call('ZRANGE', mine, -1, -1, 'WITHSCORES')
local before = last[2] or head[1] and redis.call('HGET', keys.turns, owner)
local place = tonumber(head[2] or 0)
if before then
  place = math.max(place, before + TURN / (priority or 1))
end
if is_dry_run then
  place = string.format('%.17g', place + (redis.call('GET', keys.sequence) or 0) + 1)
  return { 'would_accept', redis.call('ZCOUNT', keys.waiting, '-inf', place) + 1 }
end

-- Nothing is written before this line. A broker with full memory refuses writes that need memory, but
-- only until a script's first write: so the first one must need memory.
if reserved > 0 and redis.call('EXISTS', account) == 1 then
  redis.call('HINCRBY', account, 'reserved', text(reserved))
  if balance then
    redis.call('HINCRBY', account, 'balance', text(-reserved))
  end
end
if key ~= '' then
  redis.call('HSET', key, 'request_id', id, 'fingerprint', fingerprint)
  redis.call('HSET', keys.record, 'idempotency_key', key)
end
redis.call('HSET', keys.record, 'status', 'QUEUED', 'owner', owner, 'params', ARGV[11],
           'attempt', 0, 'created_at', text(now))
local further = tonumber(ARGV[12])
if further > 0 then
  redis.call('HSET', keys.record, unpack(ARGV, 13, 12 + further))
end
if per_minute then
  redis.call('ZREMRANGEBYSCORE', recent, '-inf', text(now - MINUTE_MS))
  redis.call('ZREMRANGEBYSCORE', recent, '(' .. text(now), '+inf')
  redis.call('ZADD', recent, text(now), id)
  redis.call('PEXPIRE', recent, MINUTE_MS)
end
redis.call('SADD', live, id)
local time = redis.call('TIME')
redis.call('ZADD', keys.history .. owner, text(time[1] * 1000000 + time[2]), id)
redis.call('PERSIST', keys.history .. owner)
redis.call('PERSIST', keys.expiries .. owner)
add_usage(owner, 'requests', 1)
if reserved > 0 then
  redis.call('HSET', keys.record, 'reserved', text(reserved), 'price', ARGV[7], 'gpu_price', ARGV[8])
end

if not head[1] then
  redis.call('DEL', keys.turns) -- an empty queue forgets past turns
end
enter_queue(id, owner, place + redis.call('INCR', keys.sequence))

redis.call('HSET', keys.rq_job, unpack(ARGV, 13 + further))
redis.call('SADD', keys.rq_queues, keys.rq_queue)
redis.call('RPUSH', keys.rq_queue, id)
return answer('accepted', unpack(rate))
