-- PROCESSING -> COMPLETED | FAILED, only by the run that holds the lease.
-- ARGV: id, run, status, retention in ms, mJ of the run or '', fields … Returns 1 when the end is this run's, else 0.
local record = read(keys.record, 'status', 'run', 'owner', 'queue')
if record[2] ~= ARGV[2] then
  return 0
end
use_queue(record[4])
if record[1] == 'PROCESSING' then
  add_energy(record[3], ARGV[5])
end
local is_unwanted = ARGV[3] == 'COMPLETED' and redis.call('HEXISTS', keys.record, 'cancelled') == 1
if record[1] == 'PROCESSING' and is_unwanted then
  end_if_cancelled(ARGV[1], ARGV[4]) -- no heartbeat has told its worker yet
  return 0
end
if record[1] == 'PROCESSING' then
  if ARGV[3] == 'COMPLETED' and ARGV[5] ~= '' then
    redis.call('HSET', keys.record, 'energy_mj', ARGV[5])
  end
  finish(ARGV[1], ARGV[3], ARGV[4], { unpack(ARGV, 6) })
  return 1
end
return record[1] == ARGV[3] and 1 or 0 -- a retry after a lost reply
