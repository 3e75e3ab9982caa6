-- Cancel: a waiting request ends at once, a running one at its worker's next heartbeat.
-- ARGV: id, owner, retention in ms, error. Returns 'requested', 'ended', or nil: no such request.
local id = ARGV[1]
local record = read(keys.record, 'status', 'owner', 'deleted', 'queue')
if record[2] ~= ARGV[2] or record[3] then
  return nil
end
if record[1] ~= 'QUEUED' and record[1] ~= 'PROCESSING' then
  return 'ended'
end
use_queue(record[4])
redis.call('HSET', keys.record, 'cancelled', ARGV[4])
if record[1] == 'QUEUED' then
  end_if_cancelled(id, ARGV[3])
  redis.call('LREM', keys.rq_queue, 0, id)
end
return 'requested'
