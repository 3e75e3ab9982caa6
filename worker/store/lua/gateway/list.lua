-- One page of an owner's requests. keys.record is here the prefix of all records.
-- ARGV: owner, most, id after which the page begins or '', 'asc' or 'desc' by the time of the submit.
-- Returns now, and for each its id, its record (as names and values) and its expiry, negative without
-- one; one request more than `most` if there are more; nil when the id is not in the list.
local owner, most, after = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local history = keys.history .. owner
local up = ARGV[4] == 'asc'
drop_expired(owner, 1000)

local from, to = up and '-inf' or '+inf', up and '+inf' or '-inf'
if after ~= '' then
  local place = redis.call('ZSCORE', history, after) or redis.call('GET', history .. ':' .. after)
  if not place then
    return nil
  end
  from = '(' .. place
end
local range = { from, to, 'BYSCORE', 'LIMIT', 0, most + 1 }
if not up then
  table.insert(range, 4, 'REV')
end
local found = { now_ms() }
repeat
  local ids = redis.call('ZRANGE', history, unpack(range))
  for _, id in ipairs(ids) do
    local record = redis.pcall('HGETALL', keys.record .. id) -- an error has no [1]
    if record[1] and #found <= 1 + 3 * most then
      found[#found + 1] = id
      found[#found + 1] = record
      found[#found + 1] = redis.call('PEXPIRETIME', keys.record .. id)
    end
  end
  range[#range - 1] = range[#range - 1] + #ids
until #ids == 0 or #found > 1 + 3 * most
return found
