-- The result cache. Requests with the same cache key are twins: one of them runs and is their maker; when it
-- is COMPLETED, so are the others, with its video. They wait in the queue like any other request, so that
-- whatever ends the maker's run otherwise, the next of them runs.

-- Twins that wait at most: the end of one run completes all of them in one step.
local MOST_TWINS = 500

-- The maker of the video of a cache key, its status, and the identity of its worker; or nil.
local function maker_of(cache_key)
  local id = redis.call('GET', keys.makers .. cache_key)
  local status, identity = unpack(id and read(RECORD .. id, 'status', 'identity') or {})
  if status == 'PROCESSING' or status == 'COMPLETED' then
    return id, status, identity
  end
end

-- The same while its files can be had: the video is kept, in the store that gateways read now, and its worker
-- told what made it.
local function kept_maker_of(cache_key)
  local id, status, identity = maker_of(cache_key)
  if status ~= 'COMPLETED' or (identity or '') == '' then
    return nil
  end
  local store, now = read(RECORD .. id, 'store')[1], redis.call('GET', keys.store)
  if not now or (store or '') == '' or store == now then
    return id, identity
  end
end

-- Whether a popped request is to be left there, until the run of its twin has ended.
local function waits_for_twin(cache_key)
  local _, status = maker_of(cache_key or '')
  return status == 'PROCESSING'
end

local function join_twins(id, cache_key)
  redis.call('SADD', keys.twins .. cache_key, id)
end

local function become_maker(id, cache_key)
  redis.call('SREM', keys.twins .. cache_key, id)
  redis.call('SET', keys.makers .. cache_key, id)
end

-- A request is no maker any more. Its twins that were popped meanwhile can be popped again.
local function resign_as_maker(id, cache_key)
  if redis.call('GET', keys.makers .. cache_key) ~= id then
    return
  end
  redis.call('DEL', keys.makers .. cache_key)
  for _, twin in ipairs(redis.call('SMEMBERS', keys.twins .. cache_key)) do
    if redis.call('LREM', keys.intermediate, 0, twin) > 0 then
      redis.call('LPUSH', keys.rq_queue, twin)
    end
  end
end

-- How long all cards worked on the frames of a video, in ms.
local function made_in_ms(maker)
  local started, ended, gpus, cached =
    unpack(read(RECORD .. maker, 'started_at', 'ended_at', 'gpus', 'cached_gpu_ms'))
  if cached then
    return tonumber(cached)
  end
  return math.max(0, (ended or 0) - (started or ended or 0)) * (gpus or 1)
end

-- Fields of a record that has the video of another one's run. Its charge goes by `cached_gpu_ms`.
local function fields_of_twin(maker)
  local fields = { 'cached', 1, 'cached_gpu_ms', text(made_in_ms(maker)) }
  local made = named(RECORD .. maker, 'file_name', 'file_size', 'precision', 'warnings', 'poster_size',
                     'last_frame_size')
  for index = 1, #made, 2 do
    if made[index + 1] then
      append(fields, { made[index], made[index + 1] })
    end
  end
  return fields
end

-- Of a run that would make the frames of a kept MP4 for another fps, that file: no field, or all.
local function source_of(frames_key, identity)
  local maker, made_by = kept_maker_of(frames_key or '')
  if made_by ~= identity then
    return {}
  end
  local file_name, warnings = unpack(read(RECORD .. maker, 'file_name', 'warnings'))
  return { 'source', file_name, 'source_warnings', warnings, 'source_ms', text(made_in_ms(maker)) }
end

-- A maker's files are kept until the last request that has them has expired.
local function share_files(maker, id, retention_ms)
  local sharers, now = keys.sharers .. maker, now_ms()
  redis.call('ZREMRANGEBYSCORE', sharers, '-inf', text(now))
  redis.call('ZADD', sharers, text(now + retention_ms), id)
  if redis.call('PTTL', sharers) < tonumber(retention_ms) then
    redis.call('PEXPIRE', sharers, retention_ms)
  end
end

-- A request that is deleted lets go of its files. Returns whether another one has them, too.
local function are_shared(id, file_name, cache_keys)
  local maker = string.match(file_name, '^(.*)%-%x+%.%w+$')
  if not maker then
    return false
  end
  for _, cache_key in ipairs(cache_keys) do
    if redis.call('GET', keys.makers .. cache_key) == id then
      redis.call('DEL', keys.makers .. cache_key) -- the owner wants it forgotten
    end
  end
  redis.call('ZREM', keys.sharers .. maker, id)
  return maker ~= id and redis.call('EXISTS', RECORD .. maker) == 1
    or redis.call('ZCOUNT', keys.sharers .. maker, text(now_ms()), '+inf') > 0
end
