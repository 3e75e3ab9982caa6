-- One page of what an owner has asked for. The key of the record is here what all records' begin with.
-- ARGV: owner, most, id after which it begins or '', 'asc' or 'desc' by the time of the submit.
-- Returns ids, each before its flat record and when that expires, or what is below 0; one more than
-- asked for where there are more; nil when the id is not among them.
local owner, most, after = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local history = keys.history .. owner
local up = ARGV[4] == 'asc'
forget_gone(owner, 1000)

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
