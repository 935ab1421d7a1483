-- Free tiers: of the units that calls of a policy count in a window, the first `limit` cost nothing. The account has for each
-- kind a list of windows, the newest first, each {start, used, held, limit, num, den, reserve}:
--   used     units that the ledger has counted, absolute; false where nobody has told yet    held  by calls under way
--   reserve  microcents of the account's `held` that are held for this window
-- Which of the calls under way will have to pay is for the ledger to say, in the order in which it writes. So no call holds
-- money of its own here: all of them together hold the price, num / den microcents a unit, of the units beyond the free ones.

local START, USED, HELD, LIMIT, NUM, DEN, RESERVE = 1, 2, 3, 4, 5, 6, 7
local COLD, OUTSIDE = 4, 5  -- outcomes, see decide.lua
local EXACT_MAX = 9007199254740991
-- Below it b * part stays exact for all b, part < den.
local DEN_EXACT_MAX = 67108864

-- A window that is over and in which nothing is under way is forgotten.
local function packed(tiers)
  for kind, windows in pairs(tiers) do
    for at = #windows, 2, -1 do
      if windows[at][HELD] == 0 then table.remove(windows, at) end
    end
    if not windows[1] then tiers[kind] = nil end
  end
  return next(tiers) and cmsgpack.pack(tiers) or ''
end

-- All of an account's, by kind.
local function all_of(account)
  if type(account.tiers) == 'string' then
    account.tiers = account.tiers ~= '' and cmsgpack.unpack(account.tiers) or {}
  end
  return account.tiers
end

local function load_tier(account, kind)
  local tiers = all_of(account)
  tiers[kind] = tiers[kind] or {}
  return tiers[kind]
end

local function window_at(account, kind, start)
  for _, window in ipairs(load_tier(account, kind)) do
    if window[START] == start then return window end
  end
end

-- The window of that start, made where there is none yet.
local function open(account, kind, start, used)
  local windows = load_tier(account, kind)
  local at = 1
  while windows[at] and windows[at][START] > start do at = at + 1 end
  local window = {start, used, 0, 0, 0, 1, 0}
  table.insert(windows, at, window)
  return window
end

-- Microcents that `held` units hold, rounded up.
local function reserve_for(window, held)
  local over = held
  if window[USED] then over = math.min(held, window[USED] + held - window[LIMIT]) end
  if over <= 0 then return 0 end
  local num, den = window[NUM], window[DEN]
  if den > DEN_EXACT_MAX then return math.min(math.ceil(over * (num / den) * (1 + 2 ^ -50)), EXACT_MAX) end
  local part, rest = num % den, over % den
  local whole = over * math.floor(num / den) + math.floor(over / den) * part
  return math.min(whole + math.ceil(rest * part / den), EXACT_MAX)
end

-- Something has changed: the account holds what the window's calls may come to now. Returns by how much that rose.
local function settle(account, window)
  local reserve = reserve_for(window, window[HELD])
  local rise = reserve - window[RESERVE]
  window[RESERVE] = reserve
  if rise ~= 0 then account_hold(account, rise) end
  account_touch(account)
  return rise
end

local function hold(account, kind, start, units)
  local window = window_at(account, kind, start)
  if not window then return 0 end
  window[HELD] = math.max(0, window[HELD] + units)
  return settle(account, window)
end

local function price(account, window, limit, num, den)
  if window[LIMIT] ~= limit or window[NUM] ~= num or window[DEN] ~= den then
    window[LIMIT], window[NUM], window[DEN] = limit, num, den
    settle(account, window)
  end
end

-- As merge in settle.lua. What comes of a window that is over matters while calls of it are under way.
local function merge(account, kind, start, used, exactly)
  local window = window_at(account, kind, start)
  if not window then
    local newest = load_tier(account, kind)[1]
    if newest and newest[START] > start then return end
    window = open(account, kind, start, used)
  elseif exactly or used > (window[USED] or -1) then
    window[USED] = used
  else
    return
  end
  settle(account, window)
end

-- What stands in the way of a call under an account's free tier (row: {kind, start, end, limit, num, den}), as in decide.lua;
-- else nil and the window.
local function window_for(account, row, rolling)
  local kind, start = row[1], row[2]
  if now < start or now >= row[3] then return OUTSIDE end
  local window = window_at(account, kind, start)
  if not (window and window[USED]) then
    local newest = load_tier(account, kind)[1]
    if window or not (rolling and newest and newest[START] < start) then return COLD end
    window = open(account, kind, start, 0)  -- as in rolled.lua; the ledger's first word of it is all that counts
  end
  price(account, window, row[4], row[5], row[6])
  return nil, window
end

return {
  packed = packed, all_of = all_of, window_at = window_at, open = open, reserve_for = reserve_for, hold = hold, price = price,
  merge = merge, window_for = window_for,

  -- What a call of so many units more would have to hold.
  need_of = function(window, units)
    return reserve_for(window, window[HELD] + units) - window[RESERVE]
  end,

  -- Such a call is admitted; who asked for `need` holds it for the account.
  take = function(window, units, need)
    window[HELD] = window[HELD] + units
    window[RESERVE] = window[RESERVE] + need
  end,
}
