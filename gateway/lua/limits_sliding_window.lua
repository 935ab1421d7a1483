-- sliding_window: never more than the limit in ANY span of one window.
-- Time is cut into slices of ceil(window / 60) ms. What counts is the slice of now and as many before it as make up a
-- window (60 or fewer), the oldest as a whole: any window that ends now lies within those. So the limit is never passed,
-- and a call waits at most one slice (1/60 of the window, or 1 ms) longer than under an exact log.
-- String of doubles: the sum of the slices that count, then slice and count of each in which anything passed, the oldest first.
-- Each slice is added once and subtracted once, however many calls there are.
local LIMIT, WINDOW = 2, 3
local SLICES_MAX = 60
local HEAD, HEAD_SIZE, PAIR, PAIR_SIZE, ALL_OF_ONE = '<d', 8, '<dd', 16, '<ddd'


return {
  is_string = true,

  prepare = function(row)
    row.slice_ms = math.ceil(row[WINDOW] / SLICES_MAX)
    row.span = math.ceil(row[WINDOW] / row.slice_ms) + 1  -- so many slices count
  end,

  new = function(key, row)
    return {
      key = key, stage = 0, taken = 0,
      slice = math.floor(now / row.slice_ms),
      total = 0,
      count = 0,     -- in the newest slice
      older = '',    -- the slices before it, as in the string
      renew = true,  -- whether the key shall live on from now
    }
  end,

  load = function(state, row)
    local text = text_of(state.key)
    if not text then return end
    local total = struct.unpack(HEAD, text)
    local from, to = 1 + HEAD_SIZE, #text - PAIR_SIZE
    local newest, count = struct.unpack(PAIR, text, to + 1)
    local span = row.span
    -- The key lives for two windows and more from the first call in each window on: not each slice must say so again.
    state.renew = math.floor(state.slice / span) > math.floor(newest / span)
    if state.slice <= newest then  -- also when the clock of a new primary is behind: its time stands still till it catches up
      state.slice, state.count = newest, count
    else
      to = #text
    end
    while from <= to do
      local old, gone = struct.unpack(PAIR, text, from)
      if old > state.slice - span then break end
      total = total - gone
      from = from + PAIR_SIZE
    end
    state.total = total
    state.older = string.sub(text, from, to)
  end,

  wait = function(state, row, weight)
    local over = state.total + state.taken + weight - row[LIMIT]
    if over <= 0 then return 0 end
    if weight > row[LIMIT] then return row[WINDOW] end
    for at = 1, #state.older, PAIR_SIZE do  -- the oldest leaves when the next slice begins, and so on
      local old, count = struct.unpack(PAIR, state.older, at)
      over = over - count
      if over <= 0 then return (old + row.span) * row.slice_ms - now end
    end
    return (state.slice + row.span) * row.slice_ms - now
  end,

  -- There is more once the oldest slice in which anything passed leaves the window.
  left = function(state, row)
    local oldest = state.slice
    for at = 1, #state.older, PAIR_SIZE do
      local old, count = struct.unpack(PAIR, state.older, at)
      if count > 0 then
        oldest = old
        break
      end
    end
    return row[LIMIT] - state.total - state.taken, (oldest + row.span) * row.slice_ms - now
  end,

  store = function(state, row)
    local total, count = state.total + state.taken, state.count + state.taken
    local text
    if state.older == '' then
      text = struct.pack(ALL_OF_ONE, total, state.slice, count)
    else
      text = struct.pack(HEAD, total) .. state.older .. struct.pack(PAIR, state.slice, count)
    end
    if state.renew then
      redis.call('SET', state.key, text, 'PX', 2 * (row.span + 1) * row.slice_ms + ttl_extra)
    else
      redis.call('SET', state.key, text, 'KEEPTTL')
    end
  end,
}
