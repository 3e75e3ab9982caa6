-- RQ's pop, in the order of the waiting set: RQ's own list is first in, first out.
-- ARGV: the models that the worker runs. Returns the id, or nil.
local id = next_waiting_of(ARGV)
if id then
  redis.call('LREM', keys.rq_queue, 0, id)
  redis.call('RPUSH', keys.intermediate, id)
end
return id
