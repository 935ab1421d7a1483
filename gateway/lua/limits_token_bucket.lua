-- token_bucket: `burst` tokens at most, `limit` of them flow in per window. Integers only: a token is window_ms units and
-- `limit` units flow in each ms, so nothing is ever rounded (burst × window_ms must stay below 2^53).
-- Hash: n  units left     m  the ms at which that was so
local LIMIT, WINDOW, BURST = 2, 3, 4

return {
  load = function(key, row)
    local values = redis.call('HMGET', key, 'n', 'm')
    local full = row[BURST] * row[WINDOW]
    local left, at = tonumber(values[1]), tonumber(values[2])
    if not left then return {key = key, left = full, full = full, rate = row[LIMIT]} end
    local passed = math.max(0, now - at)
    -- From empty to full takes full / limit ms; longer idle times are cut there so that the product stays exact.
    if passed * row[LIMIT] >= full then left = full else left = math.min(full, left + passed * row[LIMIT]) end
    return {key = key, left = left, full = full, rate = row[LIMIT], at = math.max(now, at)}
  end,

  wait = function(state, row, weight)
    local need = weight * row[WINDOW]
    if row[LIMIT] == 0 or need > row[BURST] * row[WINDOW] then return row[WINDOW] end
    if state.left >= need then return 0 end
    return math.ceil((need - state.left) / row[LIMIT])
  end,

  -- More flows in all the time; told is when the bucket is full, so that who spends what is left until then keeps the pace.
  left = function(state, row)
    return math.floor(state.left / row[WINDOW]), math.ceil((state.full - state.left) / row[LIMIT])
  end,

  take = function(state, row, weight)
    state.left = state.left - weight * row[WINDOW]
  end,

  store = function(state)
    redis.call('HSET', state.key, 'n', state.left, 'm', state.at or now)
    -- Once full again the bucket is as good as absent.
    redis.call('PEXPIRE', state.key, math.ceil((state.full - state.left) / state.rate) + 1000 + ttl_extra)
  end,
}
