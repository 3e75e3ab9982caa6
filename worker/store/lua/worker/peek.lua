-- What the next pop takes, if nothing changes before. Writes nothing.
-- ARGV: '', the queues of the worker, see `LiveWorker.sources`. Returns the id, its model or false, and the parameters as JSON, or nil.
local id = next_waiting_of({ unpack(ARGV, 2) })
return id and { id, unpack(read(keys.record .. id, 'model', 'params'), 1, 2) }
