-- Records and places in their queues of many requests. KEYS: the waiting set of the default queue, then the
-- records.
-- ARGV: the ids of the records. Returns now, and for each its record (as names and values), its rank or
-- false, and its expiry, negative without one.
local function rank_elsewhere(record, id)
  local queue = read(record, 'queue')[1]
  return queue and redis.call('ZRANK', string.format(QUEUE_KEYS.waiting[2], queue), id) or false
end

local found = { now_ms() }
for index, id in ipairs(ARGV) do
  local record = redis.pcall('HGETALL', KEYS[index + 1])
  found[#found + 1] = record.err and {} or record
  found[#found + 1] = redis.call('ZRANK', KEYS[1], id) or rank_elsewhere(KEYS[index + 1], id)
  found[#found + 1] = redis.call('PEXPIRETIME', KEYS[index + 1])
end
return found
