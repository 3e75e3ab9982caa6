-- One page of an owner's requests. keys.record is here the prefix of all records.
-- ARGV: owner, most, id after which the page begins or '', 'asc' or 'desc' by the time of the submit.
-- Returns for each its id, its record (as names and values) and its expiry, negative without one; one
-- request more than `most` if there are more; nil when the id is not in the list.
local owner, most, after = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local history = keys.history .. owner
local up = ARGV[4] == 'asc'
drop_expired(owner, 1000)

local start = 0
if after ~= '' then
  local rank = redis.call(up and 'ZRANK' or 'ZREVRANK', history, after)
  if not rank then
    return nil
  end
  start = rank + 1
end
local found = {}
repeat
  local ids = redis.call(up and 'ZRANGE' or 'ZREVRANGE', history, start, start + most)
  for _, id in ipairs(ids) do
    local record = redis.call('HGETALL', keys.record .. id)
    local is_kept = record[1] and redis.call('HEXISTS', keys.record .. id, 'deleted') == 0
    if is_kept and #found <= 3 * most then
      found[#found + 1] = id
      found[#found + 1] = record
      found[#found + 1] = redis.call('PEXPIRETIME', keys.record .. id)
    end
  end
  start = start + #ids
until #ids == 0 or #found > 3 * most
return found
