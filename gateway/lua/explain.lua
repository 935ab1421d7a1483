-- What admit.lua would find for one call, without taking anything: reads only, by the same functions.
-- KEYS and ARGV are those of input.lua, with one call.
-- Reply  [now_ms, version of the account's facts or -1, held, [[window start or -1, used], …], [[taken, wait_ms], …], tier]
--          tier: [] where there is none or nobody has told; else [used units, held units, microcents the call would hold]

-- How much of a limit is taken, by algorithm.
local taken_of = {
  fixed_window = function(state) return state.count end,
  sliding_window = function(state) return state.total end,
  token_bucket = function(state, row) return math.ceil((state.full - state.left) / row[3]) end,
  concurrency = function(state) return state.count end,
}

local account_index, _, shape_index, weights, values, _, units = unpack(input[5][1])
local shape = input[4][shape_index]
if weights == 0 then weights = shape[3] end
local reply = {now, -1, 0, {}, {}, {}}
local entry = input[3][account_index]
if entry then
  local account = use('accounts').load(entry[1], entry[3])
  reply[2] = account.version or -1
  reply[3] = account.held
  for i, window in ipairs(entry[3]) do
    reply[4][i] = {account.start[window[1]] or -1, account.used[window[1]]}
  end
  local row = entry[5]
  local tiers = row and use('tiers')
  local tier = row and tiers.window_at(account, row[1], row[2])
  if tier and tier[tiers.USED] then
    tier[tiers.LIMIT], tier[tiers.NUM], tier[tiers.DEN] = row[4], row[5], row[6]
    local held = tier[tiers.HELD]
    reply[6] = {tier[tiers.USED], held, tiers.reserve_for(tier, held + units) - tiers.reserve_for(tier, held)}
  end
end
for i, row in ipairs(shape[2]) do
  local state = use('limits').load(row, values == 0 and entry[1] or values[i])
  reply[5][i] = {taken_of[row[1]](state, row), state.limiter.wait(state, row, weights[i])}
end
return reply
