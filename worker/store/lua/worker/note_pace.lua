-- Adds a run to the exponential moving average of its engine and number of latent frames.
-- ARGV: '', latent frames and the engine, then ms: before the steps, of each step, after them.
local LAST_COUNTS = 0.3
local KEPT_SECONDS = 30 * 24 * 60 * 60

local before = redis.call('HGET', keys.paces, ARGV[2])
local means = {}
for mean in string.gmatch(before or '', '%S+') do
  means[#means + 1] = tonumber(mean)
end
for index = 1, 3 do
  local new = tonumber(ARGV[2 + index])
  local old = means[index] or new
  means[index] = string.format('%.4f', old + LAST_COUNTS * (new - old))
end
redis.call('HSET', keys.paces, ARGV[2], table.concat(means, ' '))
redis.call('EXPIRE', keys.paces, KEPT_SECONDS)
