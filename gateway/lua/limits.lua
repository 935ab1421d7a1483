-- Rate limits. Each algorithm is a module of its own, limits_<algorithm>.lua, which returns
--   load(key, row)            -> state of one limiter, read once a batch
--   wait(state, row, weight)  -> 0 if a call of `weight` may pass now, else after how many ms it could
--   take(state, row, weight, hold_id)
--   left(state, row)          -> how much may pass yet, and after how many ms there is more (-1: nobody can say); asked only
--                                once something has been taken
--   store(state)              -> writes a state that was taken from; every key it writes expires
-- `row` is [algorithm, limit, window_ms, burst, key prefix]; the key names algorithm and window, so that a changed policy
-- never meets another algorithm's data. The limit is not in the key: a plan may change it and the count goes on.

local KEY = 5

local states = {}
local taken = {}

local function load_limit(row, value)
  local key = prefix .. row[KEY] .. value
  local state = states[key]
  if not state then
    local limiter = use('limits_' .. row[1])
    state = limiter.load(key, row)
    state.limiter = limiter
    states[key] = state
  end
  return state
end

local function take(state, row, weight, hold_id)
  if not state.is_taken then
    state.is_taken = true
    taken[#taken + 1] = state
  end
  state.limiter.take(state, row, weight, hold_id)
end

-- What each of the limits has left: [left, ms, …].
local function left_of(rows, states_of)
  local told = {}
  for i, row in ipairs(rows) do
    local state = states_of[i]
    told[2 * i - 1], told[2 * i] = state.limiter.left(state, row)
  end
  return told
end

-- The keys (without the prefix) of the concurrency limits among the states, in which a call counts until it has ended; or nil.
local function slots_of(rows, states_of)
  local slots
  for i, row in ipairs(rows) do
    if row[1] == 'concurrency' then
      slots = slots or {}
      slots[#slots + 1] = string.sub(states_of[i].key, #prefix + 1)
    end
  end
  return slots
end

local function store()
  for _, state in ipairs(taken) do state.limiter.store(state) end
end

return {load = load_limit, take = take, left_of = left_of, slots_of = slots_of, store = store}
