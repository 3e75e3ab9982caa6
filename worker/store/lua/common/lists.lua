-- An owner's list of requests, and its history.

-- Removes requests whose records have expired from the list of an owner's requests.
local function drop_expired(owner, most)
  local expiries = keys.expiries .. owner
  local until_now = { expiries, '-inf', text(now_ms()), 'BYSCORE', 'LIMIT', 0, most }
  for _, id in ipairs(redis.call('ZRANGE', unpack(until_now))) do
    redis.call('ZREM', expiries, id)
    redis.call('ZREM', keys.history .. owner, id)
  end
end

-- Sets when an ended request leaves the owner's list, and removes some expired ones. The list itself
-- expires with its last request, when none of the owner's waits or runs.
local function list_expiry(id, owner, retention_ms)
  local expiries = keys.expiries .. owner
  drop_expired(owner, 10)
  if redis.call('ZSCORE', keys.history .. owner, id) then
    redis.call('ZADD', expiries, text(now_ms() + retention_ms), id)
  end
  local last = redis.call('ZRANGE', expiries, -1, -1, 'WITHSCORES')[2]
  if last and redis.call('EXISTS', keys.live .. owner) == 0 then
    redis.call('PEXPIREAT', expiries, text(last))
    redis.call('PEXPIREAT', keys.history .. owner, text(last))
  end
end

-- A deleted request leaves the owner's list. Its place is kept, since a page may begin after it.
local function leave_list(id, owner, retention_ms)
  local history = keys.history .. owner
  local place = redis.call('ZSCORE', history, id)
  if place then
    redis.call('ZREM', history, id)
    redis.call('ZREM', keys.expiries .. owner, id)
    redis.call('SET', history .. ':' .. id, place, 'PX', retention_ms)
  end
end

-- Entries in an owner's history at most. Above it the oldest is dropped.
local MOST_PAST = 10000

-- Adds an ended request to its owner's history, which has no video and outlives the record. The submit
-- said for how many days, and which parameters may be kept.
local function note_past(id, owner, status)
  local names = { 'history_days', 'deleted', 'created_at', 'cost', 'error', 'history_params', 'params',
                  'energy_mj', 'model', 'cached' }
  local days, deleted, created, cost, error, kept, params, energy, model, cached =
    unpack(redis.call('HMGET', keys.record, unpack(names)))
  if not days or deleted or is_revoked(owner) then
    return
  end
  local now, past, times = now_ms(), keys.past .. owner, keys.past .. 'times:' .. owner
  local further = energy and { 'energy_mj', energy } or {}
  append(further, model and { 'model', model } or {})
  append(further, cached and { 'cached', cached } or {})
  -- The end must not fail where a key has another type.
  local entry = redis.pcall('XADD', past, 'MAXLEN', MOST_PAST, '*', 'id', id, 'status', status,
                           'created_at', created, 'latency_ms', text(math.max(0, now - created)),
                           'cost', cost or '0', 'error', error or '', 'params', kept or params,
                           unpack(further))
  if type(entry) == 'table' then
    return
  end
  redis.call('HSET', keys.record, 'history_entry', entry)
  redis.call('XTRIM', past, 'MINID', text(now - days * DAY_MS))
  redis.pcall('ZADD', times, string.match(entry, '%d+'), id)
  redis.pcall('ZREMRANGEBYRANK', times, 0, -MOST_PAST - 1)
  redis.pcall('ZREMRANGEBYSCORE', times, '-inf', '(' .. text(now - days * DAY_MS))
  redis.call('PEXPIRE', past, text(days * DAY_MS))
  redis.call('PEXPIRE', times, text(days * DAY_MS))
end
