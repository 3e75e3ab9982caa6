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

-- The first day of the month of `day`, and the month like 2026-11. Days count from 1970, in UTC; see
-- `civil_from_days` in Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms".
local function month_of(day)
  local days = day + 719468 -- since 1 March of year 0, so that a leap day is the last one
  local of_era = days % 146097
  local year = math.floor((of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524)
                           - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * of_year + 2) / 153)
  local first = day - of_year + math.floor((153 * month + 2) / 5)
  year = year + 400 * math.floor(days / 146097) + (month < 10 and 0 or 1)
  return first, string.format('%d-%02d', year, month < 10 and month + 3 or month - 9)
end

-- The present month of an owner: its name, its end in ms, what was charged, in millionths, and which notices
-- of its budget were queued. The daily usage has it all, so nothing must be reset when a month begins.
local function this_month(owner)
  local first, name = month_of(math.floor(now_ms() / DAY_MS))
  local next_first = month_of(first + 31)
  local month = { name = name, ends_at = next_first * DAY_MS, charged = 0, noticed = {} }
  for day = first, next_first - 1 do
    local charged, warned, reached = unpack(read(
      keys.usage .. text(day), owner .. ' charged', owner .. ' budget_80', owner .. ' budget_100'))
    month.charged = month.charged + (charged or 0)
    month.noticed[80] = month.noticed[80] or warned
    month.noticed[100] = month.noticed[100] or reached
  end
  return month
end

-- What a key may spend now: its balance, or what its monthly cap leaves if that is less. Nil: no limit.
local function spendable(owner)
  local names = { 'balance', 'monthly_cap', 'reserved' }
  local balance, cap, reserved = unpack(redis.call('HMGET', keys.api_key .. owner, unpack(names)))
  if not cap then
    return balance
  end
  local left = math.max(0, cap - this_month(owner).charged - (reserved or 0))
  return math.min(left, balance or left)
end

-- The share of what a run of that length costs, which is `most` at most. In millionths of a credit.
local function charge_for(price, gpu_price, gpu_ms, most, share)
  return math.floor(share * math.min(most, price + gpu_price * gpu_ms / 1000) + 0.5)
end

-- Charges a completed request and releases the rest of the reservation, which is the most that it can
-- cost; without a video, releases all of it. In millionths of a credit. A key without a balance has no
-- limit.
local function settle(owner, is_completed, gpu_ms)
  local names = { 'reserved', 'price', 'gpu_price', 'cached_gpu_ms', 'cached_share' }
  local bill = redis.call('HMGET', keys.record, unpack(names))
  local reserved = tonumber(bill[1] or 0)
  local charge = 0
  if is_completed then
    local cached_ms, share = bill[4], bill[5] or 0
    charge = charge_for(bill[2] or 0, bill[3] or 0, cached_ms or gpu_ms, reserved, cached_ms and share or 1)
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
    redis.call('HINCRBY', account, 'balance', text(reserved - charge))
  end
  local remaining = spendable(owner)
  if remaining then
    redis.call('HSET', keys.record, 'remaining', text(remaining))
  end
end
