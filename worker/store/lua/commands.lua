-- The writes of one act of an administrator, as a transaction that a full memory does not refuse.
-- KEYS: the key of each command, in their order. ARGV: the commands without their keys, as JSON.
for index, command in ipairs(cjson.decode(ARGV[1])) do
  redis.call(command[1], KEYS[index], unpack(command, 2))
end
