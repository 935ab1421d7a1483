-- concurrency: at most `limit` calls under way. A set of hold ids; a call leaves it when it ends, or when a sweeper finds that
-- its worker died. The whole set expires a day after the last call entered: a slot never outlives a lost record.
local LIMIT = 2
local SLOTS_TTL_MS = 86400000
-- When a slot falls free cannot be known; this is what Retry-After says.
local SLOT_WAIT_MS = 1000

return {
  TTL_MS = SLOTS_TTL_MS,

  new = function(key)
    return {key = key, stage = 0, taken = 0, count = 0, entered = {}}
  end,

  load = function(state)
    state.count = redis.call('SCARD', state.key)
  end,

  wait = function(state, row)
    if state.count + #state.entered < row[LIMIT] then return 0 end
    return SLOT_WAIT_MS
  end,

  enter = function(state, hold_id)
    state.entered[#state.entered + 1] = hold_id
  end,

  left = function(state, row)
    return row[LIMIT] - state.count - #state.entered, -1
  end,

  store = function(state)
    call_in_chunks('SADD', state.key, state.entered)
    redis.call('PEXPIRE', state.key, SLOTS_TTL_MS)
  end,
}
