-- Requests that wait.

-- Two sorted sets hold a waiting request: that of all, and its owner's. Places below 0 are those of
-- requests that have run before.
local function enter_queue(id, owner, place)
  place = string.format('%.17g', place)
  redis.call('ZADD', keys.waiting, place, id)
  redis.call('ZADD', keys.waiting .. ':' .. owner, place, id)
end

-- The id that the next pop takes, or nil: the first that waits, and is not popped already.
local function next_waiting()
  local popped = {}
  for _, id in ipairs(redis.call('LRANGE', keys.intermediate, 0, -1)) do
    popped[#popped + 1], popped[id] = id, true
  end
  for _, id in ipairs(redis.call('ZRANGE', keys.waiting, 0, #popped)) do
    if not popped[id] then
      return id
    end
  end
end

-- The same among the queues of several models: that which has waited longest. `keys` then names its queue.
-- keys.record is here the prefix of all records.
local function next_waiting_of(models)
  local found, model, oldest
  for _, each in ipairs(models) do
    use_queue(each)
    local id = next_waiting()
    local created_at = id and models[2] and tonumber(read(keys.record .. id, 'created_at')[1]) or 0
    if id and (not found or created_at < oldest) then
      found, model, oldest = id, each, created_at
    end
  end
  use_queue(model)
  return found
end

local function leave_queue(id)
  redis.call('ZREM', keys.waiting, id)
  local owner = unpack(read(keys.record, 'owner'))
  if owner then
    redis.call('ZREM', keys.waiting .. ':' .. owner, id)
  end
  if redis.call('EXISTS', keys.waiting) == 0 then
    redis.call('DEL', keys.turns, keys.sequence) -- an empty queue begins anew
  end
end

-- Removes an id from the queues of all models, except of one, if it waits there. A record that is gone names
-- no model.
local function leave_all_queues(id, except)
  for _, model in ipairs(MODELS) do
    if model ~= except then
      use_queue(model)
      redis.call('LREM', keys.intermediate, 0, id)
      redis.call('LREM', keys.rq_queue, 0, id)
      leave_queue(id)
    end
  end
end
