-- Records and places in the queue of many requests at once. KEYS: the waiting set, then the records.
-- ARGV: the ids of those records. Returns now, and for each a flat record, a rank or false, and when
-- it expires, or what is below 0.
local found = { now_ms() }
for index, id in ipairs(ARGV) do
  found[#found + 1] = redis.call('HGETALL', KEYS[index + 1])
  found[#found + 1] = redis.call('ZRANK', KEYS[1], id)
  found[#found + 1] = redis.call('PEXPIRETIME', KEYS[index + 1])
end
return found
