-- sliding_window: never more than the limit in ANY span of one window.
-- Time is cut into slices of ceil(window / 60) ms. What counts is the slice of now and as many before it as make up a
-- window (60 or fewer), the oldest as a whole: any window that ends now lies within those. So the limit is never passed,
-- and a call waits at most one slice (1/60 of the window, or 1 ms) longer than under an exact log.
-- Hash: t  the sum of the slices that count     l  the newest slice     0 … n  counts, at slice % (n + 1)
-- Each slice is added once and subtracted once, however many calls there are.
local LIMIT, WINDOW = 2, 3
local SLICES_MAX = 60

-- The counts of the slices before this one that lie within a window, the oldest first; read once a batch.
local function older_slices(state)
  if state.older then return state.older end
  local fields = {}
  for old = state.slice - state.ring + 1, state.slice - 1 do fields[#fields + 1] = old % state.ring end
  local gone = {}
  for _, field in ipairs(state.expired or {}) do gone[field] = true end
  local older = {}
  for i, count in ipairs(redis.call('HMGET', state.key, unpack(fields))) do
    older[i] = not state.empty and not gone[fields[i]] and tonumber(count) or 0
  end
  state.older = older
  return older
end

return {
  load = function(key, row)
    local slice_ms = math.ceil(row[WINDOW] / SLICES_MAX)
    local slice = math.floor(now / slice_ms)
    local ring = math.ceil(row[WINDOW] / slice_ms) + 1
    local values = redis.call('HMGET', key, 'l', 't', slice % ring)
    local newest = tonumber(values[1])
    local state = {  -- all fields at once: a table that grows is copied each time
      key = key, slice_ms = slice_ms, slice = slice, ring = ring, count = 0, total = tonumber(values[2]) or 0,
      renew = false, empty = false, expired = false, older = false, first = false, limiter = false, is_taken = false,
    }
    -- The key lives for two windows and more from the first call in each window on: not each slice must say so again.
    state.renew = not newest or math.floor(slice / ring) > math.floor(newest / ring)
    if not newest or slice - newest >= ring then  -- nothing that still counts
      state.total = 0
      state.empty = newest
    elseif slice <= newest then  -- also when the clock of a new primary is behind: its time stands still till it catches up
      state.slice = newest
      state.count = tonumber(slice == newest and values[3] or redis.call('HGET', key, newest % ring)) or 0
    elseif slice == newest + 1 then
      state.total = state.total - (tonumber(values[3]) or 0)
    else
      state.expired = {}
      for old = newest + 1, slice do state.expired[#state.expired + 1] = old % ring end
      for _, count in ipairs(redis.call('HMGET', key, unpack(state.expired))) do
        state.total = state.total - (tonumber(count) or 0)
      end
    end
    return state
  end,

  wait = function(state, row, weight)
    local over = state.total + weight - row[LIMIT]
    if over <= 0 then return 0 end
    if weight > row[LIMIT] then return row[WINDOW] end
    local older = older_slices(state)
    for i = 1, state.ring - 1 do  -- the oldest leaves when the next slice begins, and so on
      over = over - older[i]
      if over <= 0 then return (state.slice + i) * state.slice_ms - now end
    end
    return (state.slice + state.ring) * state.slice_ms - now
  end,

  -- There is more once the oldest slice in which anything passed leaves the window.
  left = function(state, row)
    local first = state.first
    if not first then  -- once a batch: what passes in it is of the newest slice
      first = state.ring
      if state.total > state.count then
        for i, count in ipairs(older_slices(state)) do
          if count > 0 then
            first = i
            break
          end
        end
      end
      state.first = first
    end
    return row[LIMIT] - state.total, (state.slice + first) * state.slice_ms - now
  end,

  take = function(state, row, weight)
    state.total = state.total + weight
    state.count = state.count + weight
  end,

  store = function(state)
    if state.empty then redis.call('DEL', state.key) end
    if state.expired then redis.call('HDEL', state.key, unpack(state.expired)) end
    redis.call('HSET', state.key, 'l', state.slice, 't', state.total, state.slice % state.ring, state.count)
    if state.renew then redis.call('PEXPIRE', state.key, 2 * (state.ring + 1) * state.slice_ms + ttl_extra) end
  end,
}
