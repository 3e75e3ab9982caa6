-- Records and places in the queue of many requests at once. KEYS: the waiting set, then the records.
-- ARGV: the ids of those records. Returns a flat record and a rank, or false, for each.
local found = {}
for index, id in ipairs(ARGV) do
  found[#found + 1] = redis.call('HGETALL', KEYS[index + 1])
  found[#found + 1] = redis.call('ZRANK', KEYS[1], id)
end
return found
