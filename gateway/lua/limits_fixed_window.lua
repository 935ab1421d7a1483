-- fixed_window: a counter for each window, aligned to the epoch. Up to twice the limit can pass around a boundary.
local LIMIT, WINDOW = 2, 3

return {
  load = function(key, row)
    local index = math.floor(now / row[WINDOW])
    local full = string.format('%s:%.0f', key, index)
    return {key = full, count = tonumber(redis.call('GET', full)) or 0, ends = (index + 1) * row[WINDOW]}
  end,

  wait = function(state, row, weight)
    if state.count + weight <= row[LIMIT] then return 0 end
    return state.ends - now
  end,

  left = function(state, row)
    return row[LIMIT] - state.count, state.ends - now
  end,

  take = function(state, row, weight)
    state.count = state.count + weight
  end,

  store = function(state)
    redis.call('SET', state.key, state.count, 'PX', state.ends - now + ttl_extra)
  end,
}
