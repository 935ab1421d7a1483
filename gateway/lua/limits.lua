-- Rate limits. Each algorithm is a part of its own, limits_<algorithm>.lua, which returns
--   new(key, row)            -> state of one limiter: {key = …, stage = 0, taken = 0, …}, all fields at once, eight at most: a table
--                               that grows is copied, and the next larger one is twice the size
--   prepare(row)             puts into the row what can be worked out once a batch; or absent
--   load(state, row)         what is known of it; before anything else is asked of it, once a batch
--   wait(state, row, weight) -> 0 if a call of `weight` may pass now, else after how many ms it could
--   left(state, row)         -> how much may pass yet, and after how many ms there is more (-1: nobody can say); asked only
--                               once something has been taken
--   store(state, row)        writes a state that was taken from; every key it writes expires
--   is_string                whether the state is a string under its key, which is then read with others (reads.lua)
--   enter(state, hold_id)    a call was admitted that counts until it has ended; or absent
-- `state.stage` is NEW, LOADED or TAKEN (from), `state.taken` the weight of the calls of this batch that were admitted. `row` is
-- [algorithm, limit, window_ms, burst, key prefix]; the key names algorithm and window, so that a changed policy never meets another
-- algorithm's data. The limit is not in the key: a plan may change it and the count goes on.
local KEY = 5
local NEW, LOADED, TAKEN = 0, 1, 2

local limit_states = {}
local limits_taken = {}  -- states, and behind each its row

-- The state for a value of its key. What it is, is read later.
local function limit_state(row, value)
  local key = prefix .. row[KEY] .. value
  local state = limit_states[key]
  if not row.limiter then
    row.limiter = use('limits_' .. row[1])
    if row.limiter.prepare then row.limiter.prepare(row) end
  end
  if not state then
    state = row.limiter.new(key, row)
    limit_states[key] = state
    if row.limiter.is_string then want(state.key) end
  end
  return state
end
