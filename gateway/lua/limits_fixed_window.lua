-- fixed_window: a counter for each window, aligned to the epoch. Up to twice the limit can pass around a boundary.
local LIMIT, WINDOW = 2, 3

return {
  is_string = true,

  new = function(key, row)
    local index = math.floor(now / row[WINDOW])
    return {
      key = string.format('%s:%.0f', key, index), stage = 0, taken = 0,
      count = 0, ends = (index + 1) * row[WINDOW],
    }
  end,

  load = function(state)
    state.count = tonumber(text_of(state.key) or 0)
  end,

  wait = function(state, row, weight)
    if state.count + state.taken + weight <= row[LIMIT] then return 0 end
    return state.ends - now
  end,

  left = function(state, row)
    return row[LIMIT] - state.count - state.taken, state.ends - now
  end,

  store = function(state)
    redis.call('SET', state.key, state.count + state.taken, 'PX', state.ends - now + ttl_extra)
  end,
}
