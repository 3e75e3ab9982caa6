-- Put before every script: the schema, the keys, in the order of keyspace.py, and shared functions.

-- Data that another format of records has written are neither read nor changed. The first script marks an
-- empty broker. Its key is in no KEYS, as some scripts take keys of their own.
local schema = redis.call('GET', SCHEMA_KEY)
if schema and not READS[schema] then
  return redis.error_reply(SCHEMA_ERROR .. schema)
end
if (tonumber(schema) or 0) < SCHEMA then
  redis.call('SET', SCHEMA_KEY, SCHEMA)
end

local keys = {
  record = KEYS[1], rq_job = KEYS[2], waiting = KEYS[3], sequence = KEYS[4], leases = KEYS[5],
  workers = KEYS[6], rq_queue = KEYS[7], intermediate = KEYS[8], rq_queues = KEYS[9],
  turns = KEYS[10], looks = KEYS[11],
  -- The next four are prefixes, completed with an owner or a day.
  api_key = KEYS[12], live = KEYS[13], rate = KEYS[14], usage = KEYS[15],
  metrics = KEYS[16], paces = KEYS[17], previews = KEYS[18],
  webhooks = KEYS[19], webhook = KEYS[20], -- `webhook` is completed with a request's id.
  history = KEYS[21], expiries = KEYS[22], store = KEYS[23], past = KEYS[24],
  standing = KEYS[25], served = KEYS[26],
  makers = KEYS[27], twins = KEYS[28], sharers = KEYS[29], -- Prefixes, too; see cache.lua.
}

-- Lets `keys` name a request. RECORD and RQ_JOB come from keyspace.py.
local function use_request(id)
  keys.record, keys.rq_job = RECORD .. id, RQ_JOB .. id
end

-- Lets `keys` name a queue. Records of the default model's queue have none. QUEUE_KEYS and the names of
-- queues come from keyspace.py.
local function use_queue(queue)
  local is_default = not queue or queue == DEFAULT_MODEL
  for name, key in pairs(QUEUE_KEYS) do
    keys[name] = is_default and KEYS[key[1]] or string.format(key[2], queue)
  end
end

-- The broker's clock, so that hosts' clocks do not matter.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function text(number)
  return string.format('%.0f', number)
end

-- Fields of a record, to be unpacked. A key of another type has none: it must not stop a script that
-- reads other records too, nor its own removal.
local function read(key, ...)
  local values = redis.pcall('HMGET', key, ...)
  return values.err and {} or values
end

-- Fields of a record as alternating names and values, false for one that is not there.
local function named(key, ...)
  local values, flat = read(key, ...), {}
  for index, name in ipairs({ ... }) do
    flat[#flat + 1] = name
    flat[#flat + 1] = values[index] or false
  end
  return flat
end

local function append(list, more)
  for _, each in ipairs(more) do
    list[#list + 1] = each
  end
end

local function is_revoked(owner)
  return redis.call('HEXISTS', keys.api_key .. owner, 'revoked_at') == 1
end

local DAY_MS = 24 * 60 * 60 * 1000

-- Adds to a counter of /metrics.
local function count(name, amount)
  redis.call('HINCRBY', keys.metrics, name, text(amount or 1))
end

-- A histogram is a count for each bound, and a sum. BOUNDS_MS comes from keyspace.py.
local function observe(name, ms)
  local bound = 'inf'
  for index = #BOUNDS_MS, 1, -1 do
    bound = ms <= BOUNDS_MS[index] and text(BOUNDS_MS[index]) or bound
  end
  count(name .. ' ' .. bound)
  count(name .. ' sum', ms)
end
