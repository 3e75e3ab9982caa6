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
