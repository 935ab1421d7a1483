-- Decides calls in the order they came, all or nothing each: facts, then budgets in the order sent, then rate limits in the
-- policy's order. Only a call that passes all of them takes from any of them. Outcomes:
--   0                            admitted
--   [0, [left, ms, …]]           the same under a policy that tells what its limits have left, see limits_left
--   [1, window index, taken, need or absent]   a budget is spent: used + held is `taken`; `need` under a free tier, where the
--                                call would have had to hold that and not its amount
--   [2, limit index, wait_ms]    too many calls
--   [3, version]  STALE                   the facts have changed since: load them again
--   [4]  COLD                    the account, or the window that now is, is not known here: seed it
--   [5]  WINDOW                  `now` is outside a window that was sent: work them out again

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
      account_roll_over(account, kind, start)
    elseif account.rolled and account.rolled[kind] and not rolling then
      return {COLD}
    end
  end
  if account.version < version then
    account.version = version
    account_set(account, 'v', version)
  end
end

-- The same for the window of a free tier, {kind, start, end, limit, num, den}; entry.tier is it, where it is known.
local function tier_outcome(entry, account, row, rolling)
  local kind, start = row[1], row[2]
  if now < start or now >= row[3] then return {OUTSIDE} end
  local window = tier_window(account, kind, start)
  if not (window and window[TIER_USED]) then
    local newest = tier_load(account, kind)[1]
    if window or not (rolling and newest and newest[TIER_START] < start) then return {COLD} end
    window = tier_open(account, kind, start, 0)  -- as account_roll_over; the ledger's first word of it is all that counts
  end
  tier_priced(account, kind, window, row[4], row[5], row[6])
  entry.tier = window
end

-- Once a batch for each account and version, while all is well: only the version can change within a batch.
local function entry_outcome(entry)
  local account = entry.account or account_load(entry[1], entry[3])
  entry.account = account
  if entry.fits and account.version <= entry[2] then return nil end
  local outcome = facts_outcome(account, entry[2], entry[3], entry[4] == 1)
  if entry[5] and not outcome then outcome = tier_outcome(entry, account, entry[5], entry[4] == 1) end
  entry.fits = not outcome
  return outcome
end

local entries, shapes = input[3], input[4]
local own_book = book_of(worker)
local reply = {now}

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
    local wait = limiters[row[1]].wait(states[i], row, weights[i])
    if wait > 0 then return {RATE, i - 1, wait} end
  end
end

-- What the hold must remember for the ledger; nil for nearly all.
local function terms_of(entry, call, shape)
  local row, key = entry and entry[5], call[8]
  if row then return {row[1], row[2], row[3], call[7], row[4], key or false, key and shape[5] or false} end
  if key then return {false, false, false, false, false, key, shape[5]} end
end

-- Like calls that came one after another; what they share is looked up once.
local function decide(call)
  local units = call[7]  -- under a free tier
  local entry, amount, shape, weights, values, ids = entries[call[1]], call[2], shapes[call[3]], call[4], call[5], call[6]
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
  local need = amount
  for _, id in ipairs(ids) do
    if tier then need = tier_reserve(tier, tier[TIER_HELD] + units) - tier[TIER_RESERVE] end
    local outcome = account and need > 0 and budget_outcome(entry[3], account.used, held, need)
    if outcome and tier then outcome[4] = need end
    if not outcome then
      if not states then
        states = {}
        for i, row in ipairs(rows) do states[i] = limit_load(row, values == 0 and entry[1] or values[i]) end
      end
      outcome = rate_outcome(rows, states, weights)
    end
    if not outcome then
      outcome = ADMITTED
      for i, row in ipairs(rows) do limit_take(states[i], row, weights[i], id) end
      if shape[4] == 1 then outcome = {ADMITTED, limits_left(rows, states)} end
      if id ~= '' then
        if account then held = held + need end
        if tier then
          tier[TIER_HELD] = tier[TIER_HELD] + units
          tier[TIER_RESERVE] = tier[TIER_RESERVE] + need
        end
        packed = packed or
          hold_packed(entry and entry[1] or '', amount, shape[1], slots_of(rows, states), terms_of(entry, call, shape))
        hold_new(own_book, id, packed)
      end
    end
    reply[#reply + 1] = outcome
  end
  if account and held ~= account.held then account_hold(account, held - account.held) end
  if tier then account_set(account, 'f:' .. entry[5][1], true) end
end

-- A worker that lost its connection has a new one with a higher epoch. What it had sent on the old one and Redis reads only
-- now must not run: the worker has given its answers without it, and a hold taken now would never be settled.
-- The other way round, a book that is gone or older than the worker knows it means that this Redis lost data, or went back
-- to older data: then nothing here may be believed. A heartbeat also sees that others found so.
local book = redis.call('HMGET', own_book.key, 'epoch', 'seq')
local epoch = tonumber(book[1])
if epoch and epoch > input[1] then return redis.error_reply('FENCED a newer connection of this worker exists') end
if epoch ~= input[1] or (tonumber(book[2]) or 0) < input[7] then return redis.error_reply('LOST the book is gone or old') end
if input[2] ~= 0 and redis.call('HGET', prefix .. 'life', 'g') ~= input[2] then
  return redis.error_reply('LOST another generation has begun')
end

if input[6] ~= 0 then settle(unpack(input[6])) end

for _, call in ipairs(input[5]) do decide(call) end

if own_book.new[1] then
  own_book.new[#own_book.new + 1] = 'seq'
  own_book.new[#own_book.new + 1] = input[8]
end
accounts_store()
limits_store()
holds_store()
if input[2] ~= 0 then redis.call('ZADD', KEYS[1], now, worker) end
return reply
