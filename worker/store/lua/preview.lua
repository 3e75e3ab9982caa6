-- What the run's video looks like so far. It goes with the end of the run, or soon after its worker.
-- ARGV: id, run, ms after which it goes by itself, step, picture.
local record = redis.call('HMGET', keys.record, 'status', 'run')
if record[1] == 'PROCESSING' and record[2] == ARGV[2] then
  redis.call('SET', keys.previews .. ARGV[1], ARGV[5], 'PX', ARGV[3])
  redis.call('HSET', keys.record, 'preview', ARGV[4])
end
