-- Deletes a standing webhook with its log, and gives up its waiting deliveries.
-- ARGV: '', owner, id, retention in ms. Returns 1, or 0: the owner has none with this id.
if redis.call('HDEL', keys.standing .. ARGV[2], ARGV[3]) == 0 then
  return 0
end
redis.call('DEL', keys.standing .. 'log:' .. ARGV[3])
give_up_standing(ARGV[2], ARGV[3], nil, ARGV[4])
return 1
