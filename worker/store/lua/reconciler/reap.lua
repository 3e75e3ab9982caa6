-- A run whose lease has expired: another attempt, or FAILED. Several reconcilers may call it at once.
-- ARGV: id, most attempts, retention in ms, error. Returns 'requeued', 'failed', or nil: not expired.
local id = ARGV[1]
local lease = redis.call('ZSCORE', keys.leases, id)
if not lease or tonumber(lease) > now_ms() then
  return nil
end
if read(keys.record, 'status')[1] ~= 'PROCESSING' then
  redis.call('ZREM', keys.leases, id)
  return nil
end
local outcome = retry(id, tonumber(ARGV[2]), ARGV[3], ARGV[4])
count('lost run') -- after the repair, which is tried again and again where it fails
return outcome
