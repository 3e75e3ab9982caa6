-- What RQ's pop does, for a broker whose memory is full: it refuses the plain command.
-- Returns the id, or nil.
return redis.call('LMOVE', keys.rq_queue, keys.intermediate, 'LEFT', 'RIGHT')
