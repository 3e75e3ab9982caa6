-- Stores a preview picture of a run, until the run ends or the picture expires.
-- ARGV: id, run, expiry in ms, step, picture.
local record = read(keys.record, 'status', 'run')
if record[1] == 'PROCESSING' and record[2] == ARGV[2] then
  redis.call('SET', keys.previews .. ARGV[1], ARGV[5], 'PX', ARGV[3])
  redis.call('HSET', keys.record, 'preview', ARGV[4])
end
