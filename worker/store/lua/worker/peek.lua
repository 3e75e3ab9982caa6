-- What the next pop takes, if nothing changes before. Writes nothing.
-- Returns the id and the parameters as JSON, or nil.
local id = next_waiting()
if id then
  return { id, unpack(read(keys.record .. id, 'params')) }
end
return nil
