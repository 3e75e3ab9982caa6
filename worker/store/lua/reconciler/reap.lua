-- A run whose lease has expired: another attempt, or FAILED. Several reconcilers may call it at once.
-- ARGV: id, most attempts, retention in ms, error. Returns 'requeued', 'failed', or nil: not expired.
local id = ARGV[1]
local record = read(keys.record, 'status', 'queue')
if record[1] ~= 'PROCESSING' then
  for _, queue in ipairs(QUEUES) do -- a record that is gone names none
    use_queue(queue)
    redis.call('ZREM', keys.leases, id)
  end
  return nil
end
use_queue(record[2])
local lease = redis.call('ZSCORE', keys.leases, id)
if not lease or tonumber(lease) > now_ms() then
  return nil
end
local outcome = retry(id, tonumber(ARGV[2]), ARGV[3], ARGV[4])
count('lost run') -- after the repair, which is tried again and again where it fails
return outcome
