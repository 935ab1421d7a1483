-- Decides calls in the order they came, all or nothing each: facts, then budgets in the order sent, then rate limits in the
-- policy's order. Only a call that passes all of them takes from any of them. Outcomes:
--   0                            admitted
--   [0, [left, ms, …]]           the same under a policy that tells what its limits have left, see limits.left_of
--   [1, window index, taken, need or absent]   a budget is spent: used + held is `taken`; `need` under a free tier, where the
--                                call would have had to hold that and not its amount
--   [2, limit index, wait_ms]    too many calls
--   [3, version]  STALE                   the facts have changed since: load them again
--   [4]  COLD                    the account, or the window that now is, is not known here: seed it
--   [5]  WINDOW                  `now` is outside a window that was sent: work them out again

local accounts, holds, limits = use('accounts'), use('holds'), use('limits')
local ADMITTED, BUDGET, RATE, STALE, COLD, OUTSIDE = 0, 1, 2, 3, 4, 5

-- nil where the caller knows the account as it is, else the outcome that says what to do first.
local function facts_outcome(account, version, windows, rolling)
  if not account.version then return {COLD} end
  if account.version > version then return {STALE, account.version} end
  for _, window in ipairs(windows) do
    local kind, start = window[1], window[2]
    if now < start or now >= window[3] then return {OUTSIDE} end
    local present = account.start[kind]
    if present ~= start then
      if not (rolling and present and present < start) then return {COLD} end
      accounts.roll_over(account, kind, start)
    elseif account.rolled and account.rolled[kind] and not rolling then
      return {COLD}
    end
  end
  if account.version < version then
    account.version = version
    accounts.set(account, 'v', version)
  end
end

-- The same for the window of a free tier, {kind, start, end, limit, num, den}; entry.tier is it, where it is known.
local function tier_outcome(entry, account, row, rolling)
  local kind, start = row[1], row[2]
  if now < start or now >= row[3] then return {OUTSIDE} end
  local tiers = use('tiers')
  local window = tiers.window_at(account, kind, start)
  if not (window and window[tiers.USED]) then
    local newest = tiers.load(account, kind)[1]
    if window or not (rolling and newest and newest[tiers.START] < start) then return {COLD} end
    window = tiers.open(account, kind, start, 0)  -- as accounts.roll_over; the ledger's first word of it is all that counts
  end
  tiers.price(account, kind, window, row[4], row[5], row[6])
  entry.tier = window
end

-- Once a batch for each account and version, while all is well: only the version can change within a batch.
local function entry_outcome(entry)
  local account = entry.account or accounts.load(entry[1], entry[3])
  entry.account = account
  if entry.fits and account.version <= entry[2] then return nil end
  local outcome = facts_outcome(account, entry[2], entry[3], entry[4] == 1)
  if entry[5] and not outcome then outcome = tier_outcome(entry, account, entry[5], entry[4] == 1) end
  entry.fits = not outcome
  return outcome
end

-- The first window without room, or nil.
local function budget_outcome(windows, used, held, amount)
  for i, window in ipairs(windows) do
    local taken = used[window[1]] + held
    if taken + amount > window[4] then return {BUDGET, i - 1, taken} end
  end
end

-- The first rate limit without room, or nil.
local function rate_outcome(rows, states, weights)
  for i, row in ipairs(rows) do
    local state = states[i]
    local wait = state.limiter.wait(state, row, weights[i])
    if wait > 0 then return {RATE, i - 1, wait} end
  end
end

local own_book = holds.book_of(worker)

-- What the hold must remember for the ledger; nil for nearly all.
local function terms_of(entry, call, shape)
  local row, key = entry and entry[5], call[8]
  if row then return {row[1], row[2], row[3], call[7], row[4], key or false, key and shape[5] or false} end
  if key then return {false, false, false, false, false, key, shape[5]} end
end

-- Like calls that came one after another; what they share is looked up once. Their outcomes go to the end of `reply`.
local function decide(call, reply)
  local units = call[7]  -- under a free tier
  local entry, amount, shape, weights, values, ids = input[3][call[1]], call[2], input[4][call[3]], call[4], call[5], call[6]
  local account
  if entry then
    local outcome = entry_outcome(entry)
    if outcome then
      for _ = 1, #ids do reply[#reply + 1] = outcome end
      return
    end
    account = entry.account
  end

  local rows = shape[2]
  if weights == 0 then weights = shape[3] end
  local states, packed
  local held = account and account.held
  local tier = account and entry.tier
  local tiers = tier and use('tiers')
  local need = amount
  for _, id in ipairs(ids) do
    if tier then need = tiers.reserve_for(tier, tier[tiers.HELD] + units) - tier[tiers.RESERVE] end
    local outcome = account and need > 0 and budget_outcome(entry[3], account.used, held, need)
    if outcome and tier then outcome[4] = need end
    if not outcome then
      if not states then
        states = {}
        for i, row in ipairs(rows) do states[i] = limits.load(row, values == 0 and entry[1] or values[i]) end
      end
      outcome = rate_outcome(rows, states, weights)
    end
    if not outcome then
      outcome = ADMITTED
      for i, row in ipairs(rows) do limits.take(states[i], row, weights[i], id) end
      if shape[4] == 1 then outcome = {ADMITTED, limits.left_of(rows, states)} end
      if id ~= '' then
        if account then held = held + need end
        if tier then
          tier[tiers.HELD] = tier[tiers.HELD] + units
          tier[tiers.RESERVE] = tier[tiers.RESERVE] + need
        end
        packed = packed or
          holds.packed(entry and entry[1] or '', amount, shape[1], limits.slots_of(rows, states), terms_of(entry, call, shape))
        holds.add(own_book, id, packed)
      end
    end
    reply[#reply + 1] = outcome
  end
  if account and held ~= account.held then accounts.hold(account, held - account.held) end
  if tier then accounts.set(account, 'f:' .. entry[5][1], true) end
end

return decide
