-- What became of an attempt, by the sender that made it and nobody else.
-- ARGV: id, attempt, state, what is noted, ms until the next attempt, retention in ms.
-- Returns 1 when it was noted.
local id = ARGV[1]
local delivery = keys.webhook .. id
local state, attempts, noted = unpack(redis.call('HMGET', delivery, 'state', 'attempts', 'noted'))
if state ~= 'due' or attempts ~= ARGV[2] or noted == ARGV[2] then
  return 0
end
redis.call('HSET', delivery, 'state', ARGV[3], 'noted', ARGV[2])
note_webhook(id, ARGV[4])
if ARGV[3] == 'due' then
  redis.call('ZADD', keys.webhooks, text(now_ms() + ARGV[5]), id)
else
  leave_webhooks(id, ARGV[6])
end
return 1
