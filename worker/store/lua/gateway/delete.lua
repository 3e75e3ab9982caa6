-- Delete: an ended request is removed, a waiting one ends and is removed, a running one is cancelled; its
-- record stays, hidden from the owner, until the run has ended.
-- ARGV: id, owner, retention in ms, error. Returns the name of the video or '', or nil: no such request.
local id = ARGV[1]
local names = { 'status', 'owner', 'deleted', 'idempotency_key', 'file_name', 'history_entry', 'deliveries',
                'queue', 'cache_key', 'frames_key' }
local status, owner, deleted, key, file_name, entry, deliveries, queue, cache_key, frames_key =
  unpack(read(keys.record, unpack(names)))
if owner ~= ARGV[2] or deleted then
  return nil
end
use_queue(queue)
if key then -- the owner may use it for another request
  redis.call('DEL', key)
  redis.call('HDEL', keys.record, 'idempotency_key')
end
if status == 'QUEUED' or status == 'PROCESSING' then
  leave_list(id, owner, ARGV[3])
  redis.call('HSET', keys.record, 'deleted', 1, 'cancelled', ARGV[4], 'retention_ms', 1)
  if status == 'QUEUED' then
    end_if_cancelled(id, ARGV[3])
    redis.call('LREM', keys.rq_queue, 0, id)
  end
  return ''
end
redis.call('DEL', keys.record)
if entry then
  redis.call('XDEL', keys.past .. owner, entry)
  redis.call('ZREM', keys.past .. 'times:' .. owner, id)
end
leave_list(id, owner, ARGV[3])
for delivery_id in string.gmatch(id .. ' ' .. (deliveries or ''), '%S+') do
  redis.call('DEL', keys.webhook .. delivery_id)
  end_delivery(delivery_id, owner, ARGV[3])
end
if file_name and are_shared(id, file_name, { cache_key or nil, frames_key or nil }) then
  return '' -- the sweeper removes it after the last of them
end
return file_name or ''
