-- token_bucket: `burst` tokens at most, `limit` of them flow in per window. Integers only: a token is window_ms units and
-- `limit` units flow in each ms, so nothing is ever rounded (burst × window_ms must stay below 2^53).
-- String of doubles: units left, and the ms at which that was so.
local LIMIT, WINDOW, BURST = 2, 3, 4
local FORMAT = '<dd'

return {
  is_string = true,

  new = function(key, row)
    local full = row[BURST] * row[WINDOW]
    return {
      key = key, stage = 0, taken = 0,
      left = full, full = full, at = now,
    }
  end,

  load = function(state, row)
    local text = text_of(state.key)
    if not text then return end
    local left, at = struct.unpack(FORMAT, text)
    local passed = math.max(0, now - at)
    -- From empty to full takes full / limit ms; longer idle times are cut there so that the product stays exact.
    if passed * row[LIMIT] < state.full then state.left = math.min(state.full, left + passed * row[LIMIT]) end
    state.at = math.max(now, at)
  end,

  wait = function(state, row, weight)
    local need = (state.taken + weight) * row[WINDOW]
    if row[LIMIT] == 0 or weight > row[BURST] then return row[WINDOW] end
    if state.left >= need then return 0 end
    return math.ceil((need - state.left) / row[LIMIT])
  end,

  -- More flows in all the time; told is when the bucket is full, so that who spends what is left until then keeps the pace.
  left = function(state, row)
    local left = state.left - state.taken * row[WINDOW]
    return math.floor(left / row[WINDOW]), math.ceil((state.full - left) / row[LIMIT])
  end,

  store = function(state, row)
    local left = state.left - state.taken * row[WINDOW]
    -- Once full again the bucket is as good as absent.
    local life_ms = math.ceil((state.full - left) / row[LIMIT]) + 1000 + ttl_extra
    redis.call('SET', state.key, struct.pack(FORMAT, left, state.at), 'PX', life_ms)
  end,
}
