-- Requests that wait.

-- Two sorted sets hold a waiting request: that of all, and its owner's; with LoRAs also that of its choice of
-- them: a worker finds the first request that it can run without looking at those before. Places below 0 are
-- those of requests that have run before.
local function enter_queue(id, owner, place, loras)
  place = string.format('%.17g', place)
  redis.call('ZADD', keys.waiting, place, id)
  redis.call('ZADD', keys.waiting .. ':' .. owner, place, id)
  if loras then
    redis.call('SADD', keys.waiting .. ':loras', loras)
    redis.call('ZADD', keys.waiting .. ':loras:' .. loras, place, id)
  end
end

local function leave_choice(id, loras)
  local choice = keys.waiting .. ':loras:' .. loras
  redis.call('ZREM', choice, id)
  if redis.call('EXISTS', choice) == 0 then
    redis.call('SREM', keys.waiting .. ':loras', loras)
  end
end

local function has_all(offered, loras)
  for name in string.gmatch(loras, '[^,]+') do
    if not string.find(',' .. offered .. ',', ',' .. name .. ',', 1, true) then
      return false
    end
  end
  return true
end

-- The first of a sorted set that is not popped already, and its place; or nil.
local function first_of(waiting, popped)
  local found = redis.call('ZRANGE', waiting, 0, #popped, 'WITHSCORES')
  for index = 1, #found, 2 do
    if not popped[found[index]] then
      return found[index], tonumber(found[index + 1])
    end
  end
end

-- The id that the next pop takes, or nil: the first that waits, is not popped already, and asks for no LoRA
-- but those that are offered.
local function next_waiting(offered)
  local popped = {}
  for _, id in ipairs(redis.call('LRANGE', keys.intermediate, 0, -1)) do
    popped[#popped + 1], popped[id] = id, true
  end
  if offered == '' then
    return (first_of(keys.waiting, popped))
  end
  local found, least
  for _, loras in ipairs(redis.call('SMEMBERS', keys.waiting .. ':loras')) do
    if has_all(offered, loras) then
      local id, place = first_of(keys.waiting .. ':loras:' .. loras, popped)
      if id and (not found or place < least) then
        found, least = id, place
      end
    end
  end
  return found
end

-- The name of a queue, and the LoRAs behind it; see `LiveWorker.sources`.
local function parts_of(source)
  return string.match(source, '^([^:]*):?(.*)$')
end

-- Orders the heads of several queues: first one that has run before, then by when its owner was served last, so
-- that a key's long queue delays no other key's requests in another one, then by age.
local function rank(id)
  local owner, created_at = unpack(read(keys.record .. id, 'owner', 'created_at'))
  local served = tonumber(read(keys.served, owner or '')[1] or 0)
  -- One that is in its choice alone has no place: it is popped as well, and `start` clears it away.
  if tonumber(redis.call('ZSCORE', keys.waiting, id) or 0) < 0 then
    served = -1
  end
  return { served, tonumber(created_at or 0) }
end

local function is_before(one, other)
  return one[1] < other[1] or one[1] == other[1] and one[2] < other[2]
end

-- The same among several queues, by `rank`. `keys` then names its queue. keys.record is here the prefix of all
-- records.
local function next_waiting_of(sources)
  local found, queue, least
  for _, source in ipairs(sources) do
    local name, offered = parts_of(source)
    use_queue(name)
    local id = next_waiting(offered)
    local own = id and sources[2] and rank(id)
    if id and (not found or is_before(own, least)) then
      found, queue, least = id, name, own
    end
  end
  use_queue(queue)
  return found
end

local function leave_queue(id)
  redis.call('ZREM', keys.waiting, id)
  local owner, loras = unpack(read(keys.record, 'owner', 'loras'))
  if owner then
    redis.call('ZREM', keys.waiting .. ':' .. owner, id)
  end
  -- Without a record, it may be in any choice.
  for _, each in ipairs(owner and { loras or nil } or redis.call('SMEMBERS', keys.waiting .. ':loras')) do
    leave_choice(id, each)
  end
  if redis.call('EXISTS', keys.waiting) == 0 then
    redis.call('DEL', keys.turns, keys.sequence) -- an empty queue begins anew
  end
end

-- Removes an id from all queues except one, if it waits there. A record that is gone names
-- none.
local function leave_all_queues(id, except)
  for _, queue in ipairs(QUEUES) do
    if queue ~= except then
      use_queue(queue)
      redis.call('LREM', keys.intermediate, 0, id)
      redis.call('LREM', keys.rq_queue, 0, id)
      leave_queue(id)
    end
  end
end
