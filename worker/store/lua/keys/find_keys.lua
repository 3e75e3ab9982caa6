-- Looks up many API keys by the digests of their secrets. Gateways cache nothing of it.
-- KEYS: the secrets. ARGV: what the keys' names begin with, then the digests of secrets.
-- Returns for each 'unknown', 'revoked', 'expired', or its id, name, scopes, models, balance, monthly
-- cap and reserved credits.
local now = now_ms()

-- An invalid time counts as over: it must not fail the other keys of the batch.
local function is_over(written)
  local moment = tonumber(written)
  return not moment or moment <= now
end

local function find(digest)
  local found = redis.call('HGET', KEYS[1], digest)
  if not found then
    return 'unknown'
  end
  local id, ends = string.match(found, '^(%S+) ?(.*)$')
  if not id then
    return 'unknown'
  end
  local key = redis.call('HMGET', ARGV[1] .. id, 'name', 'scopes', 'models', 'balance', 'monthly_cap',
                         'reserved', 'expires_at', 'revoked_at')
  if not key[1] then
    return 'unknown'
  end
  if key[8] then
    return 'revoked'
  end
  if ends ~= '' and is_over(ends) or key[7] and is_over(key[7]) then
    return 'expired'
  end
  return { id, unpack(key, 1, 6) }
end

local answers = {}
for index = 2, #ARGV do
  answers[index - 1] = find(ARGV[index])
end
return answers
