-- Adds ended requests to an owner's history, without those that it has.
-- ARGV: '', owner, expiry in ms, JSON: of each request its id in the stream, and names and values.
local owner, expires_at = ARGV[2], tonumber(ARGV[3])
local past, times = keys.past .. owner, keys.past .. 'times:' .. owner
if is_revoked(owner) then
  return
end
local entries, first = {}, nil
for _, entry in ipairs(cjson.decode(ARGV[4])) do
  if not redis.call('XRANGE', past, entry[1], entry[1])[1] then
    first = first or entry[1]
    entries[#entries + 1] = entry
  end
end
if not first then
  return
end

-- A stream takes an id only behind all others: what is later leaves it, and comes back in its turn.
local kept_until = math.max(expires_at, redis.call('PEXPIRETIME', past))
for _, entry in ipairs(redis.call('XRANGE', past, first, '+')) do
  redis.call('XDEL', past, entry[1])
  entries[#entries + 1] = entry
end
local top = redis.call('XREVRANGE', past, '+', '-', 'COUNT', 1)[1]
if top then
  redis.call('XSETID', past, top[1])
else
  redis.call('DEL', past)
end

local function place(entry)
  local ms, number = string.match(entry[1], '(%d+)-(%d+)')
  return tonumber(ms), tonumber(number)
end

table.sort(entries, function(one, other)
  local ms, number = place(one)
  local other_ms, other_number = place(other)
  return ms < other_ms or ms == other_ms and number < other_number
end)
for _, entry in ipairs(entries) do
  redis.call('XADD', past, entry[1], unpack(entry[2]))
  for index = 1, #entry[2], 2 do
    if entry[2][index] == 'id' then
      redis.call('ZADD', times, text((place(entry))), entry[2][index + 1])
    end
  end
end
redis.call('XTRIM', past, 'MAXLEN', MOST_PAST)
redis.call('ZREMRANGEBYRANK', times, 0, -MOST_PAST - 1)
redis.call('PEXPIREAT', past, text(kept_until))
redis.call('PEXPIREAT', times, text(kept_until))
