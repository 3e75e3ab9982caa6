-- Accepts one or several requests: writes all of their records, places in the queue, reserved credits and
-- RQ's jobs, or nothing.
-- ARGV: id of the first, most waiting in the queue, 'needs_worker' or 'replay' or 'dry_run' or '', owner, idempotency key of
-- the broker or '', fingerprint, of each request the price and the price of a GPU second in millionths and the
-- most GPU seconds charged, share of the price where the result cache has the video, queue with the LoRAs that
-- all ask for, number of requests, id of the draft that the request finishes or '', webhook of that finish or '',
-- retention in ms, cache keys with spaces between, or ''; then of each request: id, params, number of names and
-- values that follow, further fields of the record …, number of names and values that follow, RQ's fields …
-- Returns the outcome; when accepted, with how many requests had a video; when replayed or in conflict, with the
-- first request's id; without a worker, with the model; with a full queue or
-- too many jobs, with how many have no video; when the owner has a rate limit, with the limit, the requests left, and ms until there is one more. A dry run makes the same checks, writes nothing, and returns
-- the place in the queue of the first request that would run, how many have a video, and what would be reserved.
local id, owner, key, fingerprint = ARGV[1], ARGV[4], ARGV[5], ARGV[6]
local is_dry_run = ARGV[3] == 'dry_run'
local queue, loras = parts_of(ARGV[11])
local model, number, draft_id = string.match(queue, '^[^+]*'), tonumber(ARGV[12]), ARGV[13]
local MINUTE_MS = 60000

local function answer(outcome, ...)
  if not is_dry_run then
    redis.pcall('HINCRBY', keys.metrics, 'submits ' .. outcome, 1) -- refused when the memory is full
  end
  return { outcome, ... }
end

-- Whether a worker runs the model with the LoRAs. One of a release without models runs the default one.
local function runs_model(worker)
  local offered = string.match(worker, '"loras":(%b{})') or '' -- see `LiveWorker`
  for name in string.gmatch(loras, '[^,]+') do
    if not string.find(offered, '"' .. name .. '":', 1, true) then
      return false
    end
  end
  local models = string.match(worker, '"models":(%b[])')
  if not models then
    return model == DEFAULT_MODEL
  end
  return string.find(models, '"' .. model .. '"', 1, true)
end

-- Whether a live worker does for which `is_right`. In portions: of a large fleet, one of the first does.
local function is_run_by(is_right)
  local first, most = 0, 10
  repeat
    local workers = redis.call('ZRANGE', keys.workers, text(now_ms()), '+inf', 'BYSCORE',
                               'LIMIT', first, most)
    for _, worker in ipairs(workers) do
      if is_right(worker) and runs_model(worker) then
        return true
      end
    end
    first = first + most
  until #workers < most
  return false
end

local function takes_requests(worker)
  local own = string.gsub(worker, '"loras":%b{}', '') -- one may be called "pause"
  return not string.find(own, '"pause":"[^"]')
end

-- The maker of a video that a run would make again, to the byte: that one of the live workers would. While
-- none lives, the one that made it is the latest known.
local function maker_of_same(cache_key)
  local maker, identity = kept_maker_of(cache_key)
  if not maker then
    return nil
  end
  local function is_same(worker)
    return string.find(worker, '"identity":"' .. identity .. '"', 1, true)
  end
  local function is_any()
    return true
  end
  return (is_run_by(is_same) or not is_run_by(is_any)) and maker
end

if queue ~= DEFAULT_MODEL then
  use_queue(queue)
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
local draft = draft_id ~= '' and RECORD .. draft_id
if draft then
  local draft_owner, deleted, finish_id = unpack(read(draft, 'owner', 'deleted', 'finish_id'))
  if draft_owner ~= owner or deleted then
    return { 'no_draft' } -- it has expired, or was deleted
  end
  -- While a finish waits, runs or is kept, there is no other. One that failed, or is about to, as it was
  -- cancelled or deleted, may be repeated.
  local finish = finish_id and RECORD .. finish_id
  local status, cancelled, webhook = unpack(finish and read(finish, 'status', 'cancelled', 'webhook_url') or {})
  if status and status ~= 'FAILED' and not cancelled then
    if ARGV[14] ~= '' and ARGV[14] ~= webhook then
      return answer('conflict', finish_id, 'finish') -- a replay would lose the new webhook
    end
    return answer('replayed', finish_id)
  end
end
if ARGV[3] == 'replay' then
  return { 'not_replayed' }
end

-- Of each request the cache key, and the maker of its video if there is one; how many have none.
local cache_keys, makers, runs = {}, {}, number
for cache_key in string.gmatch(ARGV[16], '%S+') do
  cache_keys[#cache_keys + 1] = cache_key
  local maker = maker_of_same(cache_key)
  makers[#cache_keys] = maker
  runs = runs - (maker and 1 or 0)
end
if ARGV[3] == 'needs_worker' and runs > 0 and not is_run_by(takes_requests) then
  return answer('no_worker', model, loras)
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
local is_first = runs == 1 and redis.call('EXISTS', mine) == 0
if runs > 0 and redis.call('ZCARD', keys.waiting) + runs > tonumber(ARGV[2]) and not is_first then
  return answer('queue_full', runs)
end
local live = keys.live .. owner
if at_once and runs > 0 and redis.call('SCARD', live) + runs > tonumber(at_once) then
  return answer('too_many_jobs', runs, tonumber(at_once))
end
local most_each, reserves, reserved = ARGV[7] + math.ceil(ARGV[8] * ARGV[9]), {}, 0
for index = 1, number do
  local maker = makers[index]
  reserves[index] = maker and charge_for(ARGV[7], ARGV[8], made_in_ms(maker), most_each, ARGV[10])
    or most_each
  reserved = reserved + reserves[index]
end
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
  local is_over = made + number > limit
  -- One more, or as many more, may be submitted when this request is a minute old.
  local first = redis.call('ZRANGE', recent, since, text(now), 'BYSCORE',
                           'LIMIT', math.max(0, made + number - 1 - limit), 1, 'WITHSCORES')
  local left = math.max(0, limit - made - (is_over and 0 or number))
  rate = { limit, left, (first[2] or now) + MINUTE_MS - now }
  if is_over then
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
  return { 'would_accept', redis.call('ZCOUNT', keys.waiting, '-inf', place) + 1, number - runs, text(reserved) }
end

-- Nothing is written before this line. A broker with full memory refuses writes that need memory, but
-- only until a script's first write: so the first one must need memory.
redis.call('SADD', keys.rq_queues, keys.rq_queue)
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
if draft then
  redis.call('HSET', draft, 'finish_id', id)
end
if per_minute then
  redis.call('ZREMRANGEBYSCORE', recent, '-inf', text(now - MINUTE_MS))
  redis.call('ZREMRANGEBYSCORE', recent, '(' .. text(now), '+inf')
end
if not head[1] then
  redis.call('DEL', keys.turns) -- an empty queue forgets past turns
end
local history, time = keys.history .. owner, redis.call('TIME')
local submitted_us = time[1] * 1000000 + time[2]

-- The next item of ARGV, and as many of them as the next one says.
local at = 16
local function take()
  at = at + 1
  return ARGV[at]
end
local function take_list()
  local first = tonumber(take())
  at = at + first
  return { unpack(ARGV, at - first + 1, at) }
end

local has_turn = false
for index = 1, number do
  local request, cache_key, maker = take(), cache_keys[index], makers[index]
  use_request(request)
  redis.call('HSET', keys.record, 'status', 'QUEUED', 'owner', owner, 'params', take(),
             'attempt', 0, 'created_at', text(now))
  local further = take_list()
  if further[1] then
    redis.call('HSET', keys.record, unpack(further))
  end
  if reserves[index] > 0 then
    local bill = maker and { text(reserves[index]), 0, 1 } or { ARGV[7], ARGV[8], cache_key and ARGV[10] }
    redis.call('HSET', keys.record, 'reserved', text(reserves[index]), 'price', bill[1], 'gpu_price', bill[2],
               unpack(cache_key and { 'cached_share', bill[3] } or {}))
  end
  if per_minute then
    redis.call('ZADD', recent, text(now), request)
  end
  redis.call('SADD', live, request)
  redis.call('ZADD', history, text(submitted_us + index), request) -- in this order
  local rq_fields = take_list()
  if maker then
    complete_with(maker, request, ARGV[15])
    count('cache hit')
  else
    if has_turn then
      place = math.max(tonumber(head[2] or 0), place + TURN / (priority or 1))
    end
    has_turn = true
    place = place + redis.call('INCR', keys.sequence)
    enter_queue(request, owner, place, loras ~= '' and loras or nil)
    redis.call('HSET', keys.rq_job, unpack(rq_fields))
    redis.call('RPUSH', keys.rq_queue, request)
    redis.call('PERSIST', history)
    redis.call('PERSIST', keys.expiries .. owner)
    if cache_key and redis.call('SCARD', keys.twins .. cache_key) < MOST_TWINS then
      redis.call('HSET', keys.record, 'cache_key', cache_key)
      join_twins(request, cache_key)
    end
  end
end
if per_minute then
  redis.call('PEXPIRE', recent, MINUTE_MS)
end
add_usage(owner, 'requests', number)
return answer('accepted', number - runs, unpack(rate))
