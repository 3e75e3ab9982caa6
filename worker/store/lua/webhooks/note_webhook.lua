-- Records the outcome of an attempt, only by the sender that made it.
-- ARGV: id, attempt, state, line for the log, ms until the next attempt, retention in ms.
-- Returns 1 when it was recorded, else 0.
local id = ARGV[1]
local delivery = keys.webhook .. id
local names = { 'state', 'attempts', 'noted', 'owner' }
local state, attempts, noted, owner = unpack(redis.call('HMGET', delivery, unpack(names)))
if state ~= 'due' or attempts ~= ARGV[2] or noted == ARGV[2] then
  return 0
end
redis.call('HSET', delivery, 'state', ARGV[3], 'noted', ARGV[2])
log_attempt(id, ARGV[4])
if ARGV[3] == 'due' then
  schedule_delivery(id, owner, now_ms() + ARGV[5])
else
  end_delivery(id, owner, ARGV[6])
end
return 1
