-- concurrency: at most `limit` calls under way. A set of hold ids; a call leaves it when it ends, or when a sweeper finds that
-- its worker died. The whole set expires a day after the last call entered: a slot never outlives a lost record.
local LIMIT = 2
local SLOTS_TTL_MS = 86400000
-- When a slot falls free cannot be known; this is what Retry-After says.
local SLOT_WAIT_MS = 1000

return {
  TTL_MS = SLOTS_TTL_MS,

  load = function(key)
    return {key = key, count = redis.call('SCARD', key), entered = {}}
  end,

  wait = function(state, row)
    if state.count < row[LIMIT] then return 0 end
    return SLOT_WAIT_MS
  end,

  left = function(state, row)
    return row[LIMIT] - state.count, -1
  end,

  take = function(state, row, weight, hold_id)
    state.count = state.count + 1
    state.entered[#state.entered + 1] = hold_id
  end,

  store = function(state)
    call_in_chunks('SADD', state.key, state.entered)
    redis.call('PEXPIRE', state.key, SLOTS_TTL_MS)
  end,
}
