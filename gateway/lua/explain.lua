-- What admit.lua would find for one call, without taking anything: reads only, by the same functions.
-- KEYS and ARGV are those of input.lua, with one call.
-- Reply  [now_ms, version of the account's facts or -1, held, [[window start or -1, used], …], [[taken, wait_ms], …], tier]
--          tier: [] where there is none or nobody has told; else [used units, held units, microcents the call would hold]

local TIER_USED, TIER_HELD, TIER_LIMIT, TIER_NUM, TIER_DEN = 2, 3, 4, 5, 6

-- How much of a limit is taken, by algorithm.
local taken_of = {
  fixed_window = function(state) return state.count end,
  sliding_window = function(state) return state.total end,
  token_bucket = function(state, row) return math.ceil((state.full - state.left) / row[3]) end,
  concurrency = function(state) return state.count end,
}

local entry, _, shape_index, weights, values, _, units = unpack(input[5])
local shape = input[4][shape_index]
if weights == 0 then weights = shape[3] end
local reply = {now, -1, 0, {}, {}, {}}
local id, _, windows, _, row = unpack(input[3])
if entry > 0 then
  local account = account_of(id)
  reply[2] = account.version
  reply[3] = account.held
  for i, window in ipairs(input[9][windows]) do
    local at = window_place(account, window[1])
    reply[4][i] = at and {account[at + START], account[at + USED]} or {-1, 0}
  end
  local tiers = row ~= 0 and use('tiers')
  local tier = tiers and tiers.window_at(account, row[1], row[2])
  if tier and tier[TIER_USED] then
    tier[TIER_LIMIT], tier[TIER_NUM], tier[TIER_DEN] = row[4], row[5], row[6]
    local held = tier[TIER_HELD]
    reply[6] = {tier[TIER_USED], held, tiers.reserve_for(tier, held + units) - tiers.reserve_for(tier, held)}
  end
end
for i, row in ipairs(shape[2]) do
  local state = limit_state(row, values == 0 and id or values[i])
  row.limiter.load(state, row)
  reply[5][i] = {taken_of[row[1]](state, row), row.limiter.wait(state, row, weights[i])}
end
return reply
