-- RQ's pop, in the order of the waiting set: RQ's own list is first in, first out.
-- ARGV: the queues of the worker, see `LiveWorker.sources`. Returns the id, or nil.
local id = next_waiting_of(ARGV)
if id then
  redis.call('LREM', keys.rq_queue, 0, id)
  redis.call('RPUSH', keys.intermediate, id)
end
return id
