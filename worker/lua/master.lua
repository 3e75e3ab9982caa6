-- Put before scripts that only read. They need no server that may write, but the master: what one knows
-- that was made a replica, and still answers who asks it, may be long out of date.
local role = redis.pcall('INFO', 'replication') -- an error where INFO is not granted
if type(role) == 'string' and string.find(role, 'role:slave', 1, true) then
  return redis.error_reply('READONLY This server is a replica.')
end
