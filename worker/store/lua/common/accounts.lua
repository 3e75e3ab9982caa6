-- Usage, credits, GPU time and energy of API keys.

local USAGE_KEPT_SECONDS = 401 * 24 * 60 * 60

-- Adds to the owner's usage of the day.
local function add_usage(owner, metric, amount)
  local today = keys.usage .. text(math.floor(now_ms() / DAY_MS))
  redis.call('HINCRBY', today, owner .. ' ' .. metric, text(amount))
  redis.call('EXPIRE', today, USAGE_KEPT_SECONDS, 'NX')
end

-- A run is over, however it ended. Returns how many ms it took, and the same times its GPUs.
local function end_gpu_time(owner)
  local started, gpus = unpack(redis.call('HMGET', keys.record, 'started_at', 'gpus'))
  if not started then
    return 0, 0
  end
  local ms = math.max(0, now_ms() - started)
  local gpu_ms = ms * tonumber(gpus or 1)
  add_usage(owner, 'gpu_ms', gpu_ms)
  count('gpu_ms', gpu_ms)
  return ms, gpu_ms
end

-- Counts what a run's cards have used; '' where that is not known, as for a run whose worker died.
local function add_energy(owner, mj)
  if mj ~= '' then
    add_usage(owner, 'energy_mj', mj)
    count('energy_mj', mj)
  end
end

-- Charges a completed request and releases the rest of the reservation, which is the most that it can
-- cost; without a video, releases all of it. In millionths of a credit. A key without a balance has no
-- limit.
local function settle(owner, is_completed, gpu_ms)
  local bill = redis.call('HMGET', keys.record, 'reserved', 'price', 'gpu_price')
  local reserved = tonumber(bill[1] or 0)
  local charge = 0
  if is_completed then
    charge = math.min(reserved, (bill[2] or 0) + math.floor((bill[3] or 0) * gpu_ms / 1000 + 0.5))
    add_usage(owner, 'charged', charge)
    count('charged', charge)
    redis.call('HSET', keys.record, 'cost', text(charge))
  end
  local account = keys.api_key .. owner
  if reserved > 0 and redis.call('EXISTS', account) == 1 then
    redis.call('HINCRBY', account, 'reserved', text(-reserved))
    redis.call('HINCRBY', account, 'charged', text(charge))
  end
  if redis.call('HEXISTS', account, 'balance') == 1 then
    local balance = redis.call('HINCRBY', account, 'balance', text(reserved - charge))
    redis.call('HSET', keys.record, 'remaining', text(balance))
  end
end
