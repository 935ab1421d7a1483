-- An account: string cg:{p}:a:<account id>, packed as HEAD and WINDOW say (gateway/account_record.py reads it too):
--   version   of the facts (plan, budgets) that calls must know; -1: nobody has told
--   held      microcents held by all outstanding holds, over all workers
--   expires   when the string does, ms; moved on when half of its life is gone
--   windows   how many there are; then of each
--     kind, start ms, used: microcents used in it, absolute, from Postgres; rolled: 1 if it began while Postgres was away (rolled.lua)
--   and behind them cmsgpack of {kind: windows of that free tier}, see tiers.lua; or nothing
local HEAD, WINDOW, HEAD_AND_WINDOW = '<dddH', '<sddB', '<dddHsddB'

-- Here an account is a table of these, with its windows one after the other in its array: the kind at 1, 5, 9, …, and where
-- `at` is a kind's place the rest at
local START, USED, ROLLED, SIZE = 1, 2, 3, 4

-- An account idle for a week is seeded again. Far above the life of a hold, so that none is forgotten with it.
local ACCOUNT_TTL_MS = 7 * 86400000

local accounts = {}
local accounts_changed = {}

local function account_of(id)
  local account = accounts[id]
  if account then return account end
  local key = prefix .. 'a:' .. id
  local text = text_of(key)
  if text then
    local version, held, expires, windows, place = struct.unpack(HEAD, text)
    local kind, start, used, rolled
    if windows > 0 then kind, start, used, rolled, place = struct.unpack(WINDOW, text, place) end
    account = {  -- all fields at once: a table that grows is copied each time
      key = key, version = version, held = held, expires = expires, tiers = '', is_changed = false, is_rolled = rolled == 1,
      kind, start, used, rolled,
    }
    for at = 1 + SIZE, windows * SIZE, SIZE do
      account[at], account[at + START], account[at + USED], rolled, place = struct.unpack(WINDOW, text, place)
      account[at + ROLLED] = rolled
      if rolled == 1 then account.is_rolled = true end
    end
    if place <= #text then account.tiers = string.sub(text, place) end
  else
    account = {key = key, version = -1, held = 0, expires = 0, tiers = '', is_changed = false, is_rolled = false}
  end
  accounts[id] = account
  return account
end

-- Something of it has changed: it is written at the end.
local function account_touch(account)
  if not account.is_changed then
    account.is_changed = true
    accounts_changed[#accounts_changed + 1] = account
  end
end

-- Never below zero: an account can be lost (evicted by hand) while the records of its holds live on.
local function account_hold(account, difference)
  account.held = math.max(0, account.held + difference)
  account_touch(account)
end

-- Where the window of that kind is; nil where there is none.
local function window_place(account, kind)
  for at = 1, #account, SIZE do
    if account[at] == kind then return at end
  end
end

local function accounts_store()
  for _, account in ipairs(accounts_changed) do
    local renew = account.expires - now < ACCOUNT_TTL_MS / 2
    if renew then account.expires = now + ACCOUNT_TTL_MS end
    local size, text = #account, nil
    if size == SIZE then
      local kind, start, used, rolled = unpack(account)
      text = struct.pack(HEAD_AND_WINDOW, account.version, account.held, account.expires, 1, kind, start, used, rolled)
    else
      text = struct.pack(HEAD, account.version, account.held, account.expires, size / SIZE)
      for at = 1, size, SIZE do
        text = text .. struct.pack(WINDOW, account[at], account[at + START], account[at + USED], account[at + ROLLED])
      end
    end
    local tiers = account.tiers
    if tiers ~= '' then text = text .. (type(tiers) == 'table' and use('tiers').packed(tiers) or tiers) end
    if renew then
      redis.call('SET', account.key, text, 'PX', ACCOUNT_TTL_MS)
    else
      redis.call('SET', account.key, text, 'KEEPTTL')
    end
  end
end
