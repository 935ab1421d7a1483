-- What is known here of accounts, all of one moment: for castgate reconcile and the drift metrics.
-- KEYS[1] cg:{p}:workers   ARGV[1] how many entries (holds, groups) are looked through at most   ARGV[2] holds older than this many ms are listed
-- ARGV[3] JSON: [account id, …]   ARGV[4] JSON: [account id, …] whose `held` is set to what their holds come to
-- Reply: [entries looked through, or -1 where there are too many, [account, …], [worker id, hold id, account id, amount, …]]
--   account: [held, sum of its holds, [kind, start_ms, used, rolled (1 or 0), …]]; all of it empty where the account is not known here. A free tier's
--            newest window is shown as other windows are, in units
-- Redis serves nobody else meanwhile: some 2 µs an entry.
local OLD_MAX = 1000
local TERMS_KIND, TERMS_START, TERMS_UNITS = 1, 2, 4
local TIER_START, TIER_USED, TIER_HELD, TIER_RESERVE = 1, 2, 3, 7
local tiers = use('tiers')

local books, count = {}, 0
for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local key = prefix .. 'h:' .. worker
  books[#books + 1] = {worker, key}
  count = count + redis.call('HLEN', key)
end

-- What the free tiers of an account hold if its calls do: all of it comes from their holds and what was used.
local units = {}  -- account id -> kind, start -> held

local function tiers_hold(id, account)
  local reserve = 0
  for kind, windows in pairs(tiers.all_of(account)) do
    for _, window in ipairs(windows) do
      window[TIER_HELD] = (units[id] or {})[kind .. ' ' .. string.format('%.0f', window[TIER_START])] or 0
      window[TIER_RESERVE] = tiers.reserve_for(window, window[TIER_HELD])
      reserve = reserve + window[TIER_RESERVE]
    end
  end
  return reserve
end

local sums, old, old_ms = {}, {}, tonumber(ARGV[2])
local is_known = count <= tonumber(ARGV[1])
if is_known then
  for _, book in ipairs(books) do
    local fields = redis.call('HGETALL', book[2])
    for i = 1, #fields, 2 do
      local hold_id = fields[i]
      if hold_id ~= 'epoch' and hold_id ~= 'seq' and string.byte(fields[i + 1]) <= GROUPED then
        local amount, admitted, id, _, _, terms = hold_unpacked(fields[i + 1])
        local is_group = string.byte(fields[i + 1]) == GROUPED
        local number = is_group and use('groups').size(fields[i + 1]) or 1
        if terms and terms[TERMS_KIND] then
          local of_account = units[id] or {}
          local tier = terms[TERMS_KIND] .. ' ' .. string.format('%.0f', terms[TERMS_START])
          units[id] = of_account
          of_account[tier] = (of_account[tier] or 0) + terms[TERMS_UNITS]
        else
          sums[id] = (sums[id] or 0) + amount * number
        end
        if now - admitted > old_ms and #old < 4 * OLD_MAX then
          local members = {hold_id}
          if is_group then
            local groups = use('groups')
            local _, _, _, _, mask, ids = groups.unpacked(fields[i + 1])
            members = groups.members(mask, ids)
          end
          for _, member in ipairs(members) do
            for _, part in ipairs({book[1], member, id, amount}) do old[#old + 1] = part end
          end
        end
      end
    end
  end
  for _, id in ipairs(cjson.decode(ARGV[4])) do
    local account = account_of(id)
    if text_of(account.key) then
      account.held = tiers_hold(id, account) + (sums[id] or 0)
      account_touch(account)
    end
  end
  accounts_store()
end

local function shown(account)
  local windows = {}
  for at, part in ipairs(account) do windows[at] = part end
  for kind, of_tier in pairs(tiers.all_of(account)) do
    local newest = of_tier[1]
    if newest and newest[TIER_USED] then
      for _, part in ipairs({kind, newest[TIER_START], newest[TIER_USED], 0}) do windows[#windows + 1] = part end
    end
  end
  return windows
end

local found = {}
for i, id in ipairs(cjson.decode(ARGV[3])) do
  local account = account_of(id)
  found[i] = {}
  if text_of(account.key) then
    local held = account.held
    found[i] = {held, (sums[id] or 0) + tiers_hold(id, account), shown(account)}
  end
end
return {is_known and count or -1, found, old}
