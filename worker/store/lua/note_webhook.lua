-- What became of an attempt, by the sender that made it and nobody else.
-- ARGV: id, attempt, state, what is noted, ms until the next attempt, retention in ms.
-- Returns 1 when it was noted.
local id = ARGV[1]
local delivery = keys.webhook .. id
local names = { 'state', 'attempts', 'noted', 'owner' }
local state, attempts, noted, owner = unpack(redis.call('HMGET', delivery, unpack(names)))
if state ~= 'due' or attempts ~= ARGV[2] or noted == ARGV[2] then
  return 0
end
redis.call('HSET', delivery, 'state', ARGV[3], 'noted', ARGV[2])
note_webhook(id, ARGV[4])
if ARGV[3] == 'due' then
  owe_at(id, owner, now_ms() + ARGV[5])
else
  leave_webhooks(id, owner, ARGV[6])
end
return 1
