-- The writes of one act of an administrator, if nothing that it has read has changed. It is no MULTI, which
-- Redis 7.0 refuses when its memory is full.
-- KEYS: the audit log, each record that must be as it was, the key of each command. ARGV: JSON of `last`, the
-- latest id of the log, of `records` as flat lists, and of `commands` without their keys.
-- Returns 1, or 0: something has changed.
local plan = cjson.decode(ARGV[1])
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if (last and last[1] or '') ~= plan.last then
  return 0
end
for index, record in ipairs(plan.records) do
  if cjson.encode(redis.call('HGETALL', KEYS[1 + index])) ~= cjson.encode(record) then
    return 0
  end
end
for index, command in ipairs(plan.commands) do
  redis.call(command[1], KEYS[1 + #plan.records + index], unpack(command, 2))
end
return 1
