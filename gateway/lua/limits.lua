-- Rate limits. limiters.<letter> is one algorithm, in a file of its own:
--   load(key, row)            -> state of one limiter, read once a batch
--   wait(state, row, weight)  -> 0 if a call of `weight` may pass now, else after how many ms it could
--   take(state, row, weight, hold_id)
--   store(state)              -> writes a state that was taken from; every key it writes expires
-- `row` is [letter, limit, window_ms, burst, key prefix]; the key names letter and window, so that a changed policy
-- never meets another algorithm's data. The limit is not in the key: a plan may change it and the count goes on.

local LIMIT, WINDOW, BURST, KEY = 2, 3, 4, 5

local limiters = {}
local limit_states = {}
local limits_taken = {}

local function limit_load(row, value)
  local name = row[KEY] .. value
  local state = limit_states[name]
  if not state then
    state = limiters[row[1]].load(prefix .. name, row)
    state.name = name
    limit_states[name] = state
  end
  return state
end

local function limit_take(state, row, weight, hold_id)
  if not state.taken then
    state.taken = true
    state.store = limiters[row[1]].store
    limits_taken[#limits_taken + 1] = state
  end
  limiters[row[1]].take(state, row, weight, hold_id)
end

local function limits_store()
  for _, state in ipairs(limits_taken) do state.store(state) end
end
