-- RQ's pop, in the order of the waiting set: RQ's own list is first in, first out.
-- Returns the id, or nil.
local popped = {}
for _, id in ipairs(redis.call('LRANGE', keys.intermediate, 0, -1)) do
  popped[#popped + 1], popped[id] = id, true
end
for _, id in ipairs(redis.call('ZRANGE', keys.waiting, 0, #popped)) do
  if not popped[id] then
    redis.call('LREM', keys.rq_queue, 0, id)
    redis.call('RPUSH', keys.intermediate, id)
    return id
  end
end
return nil
