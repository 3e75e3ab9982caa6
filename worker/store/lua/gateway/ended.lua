-- Those of many requests that have ended, or are gone. keys.record is here the prefix of all records.
-- ARGV: ids. Returns the ids of those.
local ended = {}
for _, id in ipairs(ARGV) do
  local status = read(keys.record .. id, 'status')[1]
  if status ~= 'QUEUED' and status ~= 'PROCESSING' then
    ended[#ended + 1] = id
  end
end
return ended
