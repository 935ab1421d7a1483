-- Free tiers: of the units that calls of a policy count in a window, the first `limit` cost nothing. Field f:<kind> of the
-- account: cmsgpack of its windows, the newest first, each {start, used, held, limit, num, den, reserve}:
--   used     units that the ledger has counted, absolute; false where nobody has told yet    held  by calls under way
--   reserve  microcents of the account's `h` that are held for this window
-- Which of the calls under way will have to pay is for the ledger to say, in the order in which it writes. So no call holds
-- money of its own here: all of them together hold the price, num / den microcents a unit, of the units beyond the free ones.

local TIER_START, TIER_USED, TIER_HELD, TIER_LIMIT, TIER_NUM, TIER_DEN, TIER_RESERVE = 1, 2, 3, 4, 5, 6, 7
-- Of a call's terms, as gateway/usage_events.py has them; false where it has no tier, or no key.
local TERMS_KIND, TERMS_START, TERMS_END, TERMS_UNITS, TERMS_LIMIT = 1, 2, 3, 4, 5
local EXACT_MAX = 9007199254740991
-- Below it b * part stays exact for all b, part < den.
local DEN_EXACT_MAX = 67108864

-- A window that is over and in which nothing is under way is forgotten.
local function tier_packed(windows)
  for at = #windows, 2, -1 do
    if windows[at][TIER_HELD] == 0 then table.remove(windows, at) end
  end
  return cmsgpack.pack(windows)
end

local function tier_load(account, kind)
  account.tiers = account.tiers or {}
  account.pack_tier = tier_packed
  local windows = account.tiers[kind]
  if not windows then
    local text = redis.call('HGET', account.key, 'f:' .. kind)
    windows = text and cmsgpack.unpack(text) or {}
    account.tiers[kind] = windows
  end
  return windows
end

local function tier_window(account, kind, start)
  for _, window in ipairs(tier_load(account, kind)) do
    if window[TIER_START] == start then return window end
  end
end

-- The window of that start, made where there is none yet.
local function tier_open(account, kind, start, used)
  local windows = tier_load(account, kind)
  local at = 1
  while windows[at] and windows[at][TIER_START] > start do at = at + 1 end
  local window = {start, used, 0, 0, 0, 1, 0}
  table.insert(windows, at, window)
  return window
end

-- Microcents that `held` units hold, rounded up.
local function tier_reserve(window, held)
  local over = held
  if window[TIER_USED] then over = math.min(held, window[TIER_USED] + held - window[TIER_LIMIT]) end
  if over <= 0 then return 0 end
  local num, den = window[TIER_NUM], window[TIER_DEN]
  if den > DEN_EXACT_MAX then return math.min(math.ceil(over * (num / den) * (1 + 2 ^ -50)), EXACT_MAX) end
  local part, rest = num % den, over % den
  local whole = over * math.floor(num / den) + math.floor(over / den) * part
  return math.min(whole + math.ceil(rest * part / den), EXACT_MAX)
end

-- Something has changed: the account holds what the window's calls may come to now. Returns by how much that rose.
local function tier_settle(account, kind, window)
  local reserve = tier_reserve(window, window[TIER_HELD])
  local rise = reserve - window[TIER_RESERVE]
  window[TIER_RESERVE] = reserve
  if rise ~= 0 then account_hold(account, rise) end
  account_set(account, 'f:' .. kind, true)  -- see accounts_store
  return rise
end

local function tier_hold(account, kind, start, units)
  local window = tier_window(account, kind, start)
  if not window then return 0 end
  window[TIER_HELD] = math.max(0, window[TIER_HELD] + units)
  return tier_settle(account, kind, window)
end

local function tier_priced(account, kind, window, limit, num, den)
  if window[TIER_LIMIT] ~= limit or window[TIER_NUM] ~= num or window[TIER_DEN] ~= den then
    window[TIER_LIMIT], window[TIER_NUM], window[TIER_DEN] = limit, num, den
    tier_settle(account, kind, window)
  end
end

-- As account_merge. What comes of a window that is over matters while calls of it are under way.
local function tier_merge(account, kind, start, used, exactly)
  local window = tier_window(account, kind, start)
  if not window then
    local newest = tier_load(account, kind)[1]
    if newest and newest[TIER_START] > start then return end
    window = tier_open(account, kind, start, used)
  elseif exactly or used > (window[TIER_USED] or -1) then
    window[TIER_USED] = used
  else
    return
  end
  tier_settle(account, kind, window)
end
