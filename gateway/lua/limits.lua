-- Rate limits. limiters.<letter> is one algorithm, in a file of its own:
--   load(key, row)            -> state of one limiter, read once a batch
--   wait(state, row, weight)  -> 0 if a call of `weight` may pass now, else after how many ms it could
--   take(state, row, weight, hold_id)
--   left(state, row)          -> how much may pass yet, and after how many ms there is more (-1: nobody can say); asked only
--                                once something has been taken
--   store(state)              -> writes a state that was taken from; every key it writes expires
-- `row` is [letter, limit, window_ms, burst, key prefix]; the key names letter and window, so that a changed policy
-- never meets another algorithm's data. The limit is not in the key: a plan may change it and the count goes on.

local LIMIT, WINDOW, BURST, KEY = 2, 3, 4, 5

local limiters = {}
local limit_states = {}
local limits_taken = {}

local function limit_load(row, value)
  local key = prefix .. row[KEY] .. value
  local state = limit_states[key]
  if not state then
    state = limiters[row[1]].load(key, row)
    limit_states[key] = state
  end
  return state
end

local function limit_take(state, row, weight, hold_id)
  local limiter = limiters[row[1]]
  if not state.store then
    state.store = limiter.store
    limits_taken[#limits_taken + 1] = state
  end
  limiter.take(state, row, weight, hold_id)
end

-- What each of the limits has left: [left, ms, …].
local function limits_left(rows, states)
  local told = {}
  for i, row in ipairs(rows) do
    told[2 * i - 1], told[2 * i] = limiters[row[1]].left(states[i], row)
  end
  return told
end

-- The keys (without the prefix) of the concurrency limits among `states`, in which a call counts until it has ended; or nil.
local function slots_of(rows, states)
  local slots
  for i, row in ipairs(rows) do
    if row[1] == 'c' then
      slots = slots or {}
      slots[#slots + 1] = string.sub(states[i].key, #prefix + 1)
    end
  end
  return slots
end

local function limits_store()
  for _, state in ipairs(limits_taken) do state.store(state) end
end
