-- An account: hash cg:{p}:a:<account id>
--   v         version of the facts (plan, budgets) that calls must know
--   h         microcents held by all outstanding holds, over all workers
--   s:<kind>  start of the window, ms          u:<kind>  microcents used in it, absolute, from Postgres
--   f:<kind>  a free tier's windows, see tiers.lua
--   r         kinds whose window began while Postgres was away, space separated (see roll_over)
--   x         when the hash expires; moved on when half of its life is gone

-- An account idle for a week is seeded again. Far above the life of a hold, so that none is forgotten with it.
local ACCOUNT_TTL_MS = 7 * 86400000

local accounts = {}
local accounts_changed = {}

-- `rows` name the windows that will be asked for: their first element is the kind.
local function load_account(id, rows)
  local account = accounts[id]
  local fields = {}
  local fresh = not account
  if fresh then
    account = {key = prefix .. 'a:' .. id, start = {}, used = {}}
    accounts[id] = account
    fields = {'v', 'h', 'x', 'r'}
  end
  local missing = {}
  for _, row in ipairs(rows) do
    local kind = row[1]
    if account.start[kind] == nil then
      missing[#missing + 1] = kind
      fields[#fields + 1] = 's:' .. kind
      fields[#fields + 1] = 'u:' .. kind
    end
  end
  if #fields == 0 then return account end

  local values = redis.call('HMGET', account.key, unpack(fields))
  local at = 1
  if fresh then
    account.version = tonumber(values[1])
    account.held = tonumber(values[2]) or 0
    account.expires = tonumber(values[3]) or 0
    if values[4] then
      account.rolled = {}
      for kind in string.gmatch(values[4], '%S+') do account.rolled[kind] = true end
    end
    at = 5
  end
  for _, kind in ipairs(missing) do
    account.start[kind] = tonumber(values[at]) or false
    account.used[kind] = tonumber(values[at + 1]) or 0
    at = at + 2
  end
  return account
end

local function set(account, field, value)
  if not account.changed then
    account.changed = {}
    accounts_changed[#accounts_changed + 1] = account
  end
  account.changed[field] = value
end

-- Never below zero: an account's hash can be lost (evicted by hand) while the records of its holds live on.
local function hold(account, difference)
  account.held = math.max(0, account.held + difference)
  set(account, 'h', account.held)
end

local function set_window(account, kind, start, used)
  account.start[kind] = start
  account.used[kind] = used
  set(account, 's:' .. kind, start)
  set(account, 'u:' .. kind, used)
end

-- Usage is an absolute sum of the ledger that only rises within a window, so the higher of two is the later one:
-- N workers may bring it in any order and any number of times. For the same reason a change of facts wipes nothing.
local function merge(account, kind, start, used)
  local present = account.start[kind]
  if not present or present < start then
    set_window(account, kind, start, used)
  elseif present == start then
    if used > account.used[kind] then set_window(account, kind, start, used) end
    if account.rolled and account.rolled[kind] then
      account.rolled[kind] = nil
      set(account, 'r', true)
    end
  end
end

-- What is known of other windows than those that `rows` name is forgotten: it may be of an old snapshot. Who needs it seeds it.
local function forget_others(account, rows)
  local named = {}
  for _, row in ipairs(rows) do named[row[1]] = true end
  local gone = {}
  for _, field in ipairs(redis.call('HKEYS', account.key)) do
    local kind = string.match(field, '^[su]:(.+)$')
    if kind and not named[kind] then
      gone[#gone + 1] = field
      account.start[kind] = nil
      if account.rolled and account.rolled[kind] then
        account.rolled[kind] = nil
        set(account, 'r', true)
      end
    end
  end
  call_in_chunks('HDEL', account.key, gone)
end

-- A new window while Postgres is away: nothing of it can have reached the ledger, all of it is still held, so it
-- starts at 0. The ledger will not count for this window before it is seeded; until then removed holds are added here.
local function roll_over(account, kind, start)
  set_window(account, kind, start, 0)
  account.rolled = account.rolled or {}
  account.rolled[kind] = true
  set(account, 'r', true)
end

local function posted(id, amount, admitted)
  local account = accounts[id]
  if not account.rolled then return end
  local rows = {}
  for kind in pairs(account.rolled) do rows[#rows + 1] = {kind} end
  load_account(id, rows)
  for _, row in ipairs(rows) do
    local kind = row[1]
    if account.start[kind] and admitted >= account.start[kind] then
      set_window(account, kind, account.start[kind], account.used[kind] + amount)
    end
  end
end

local function store()
  for _, account in ipairs(accounts_changed) do
    local changed = account.changed
    if changed.r then
      local kinds = {}
      for kind in pairs(account.rolled) do kinds[#kinds + 1] = kind end
      changed.r = table.concat(kinds, ' ')
    end
    for kind, windows in pairs(account.tiers or {}) do
      if changed['f:' .. kind] then changed['f:' .. kind] = use('tiers').packed(windows) end
    end
    local renew = account.expires - now < ACCOUNT_TTL_MS / 2
    if renew then changed.x = now + ACCOUNT_TTL_MS end
    local arguments = {}
    for field, value in pairs(changed) do
      arguments[#arguments + 1] = field
      arguments[#arguments + 1] = value
    end
    call_in_chunks('HSET', account.key, arguments)
    if renew then redis.call('PEXPIRE', account.key, ACCOUNT_TTL_MS) end
  end
end

return {
  load = load_account, set = set, hold = hold, set_window = set_window, merge = merge, forget_others = forget_others,
  roll_over = roll_over, posted = posted, store = store,
}
