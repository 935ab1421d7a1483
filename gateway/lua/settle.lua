-- What happened since the last batch, before anything new is asked. Each part may be repeated without harm:
--   seeds    [[account id, version, [[kind, start_ms, used], …], exactly, alone (1 or 0), tiers or absent], …]   sums read from
--            Postgres; `exactly`: even where more or newer is known here, for that is of a ledger that exists no longer
--            `alone`: what is known here of other windows is not to be believed
--   usages   [account id, kind, start_ms, used, account id, …]         the same, returned by a write of the ledger
--   adjusts  [[hold id, actual amount or [amount, units]], …]          calls of this worker that ended
--   removes  [[worker id, posted (0 or 1), [hold id, …]], …]           posted, voided or expired holds
--   tiers    [[account id, [[kind, start_ms, used units], …]], …] or 0   what a write of the ledger returned of free tiers
--   groups   [name, mask, how many calls that is, posted (0 or 1), name, …] or absent   as removes, of this worker's groups (groups.lua)

local TERMS_KIND, TERMS_START, TERMS_UNITS = 1, 2, 4
local seeds, usages, adjusts, removes, tiers_used, groups_over = unpack(input[6])

-- Usage is an absolute sum of the ledger that only rises within a window, so the higher of two is the later one:
-- N workers may bring it in any order and any number of times. For the same reason a change of facts wipes nothing.
local function merge(account, kind, start, used, exactly)
  local at = window_place(account, kind)
  if not at then
    at = #account + 1
    account[at], account[at + START], account[at + USED], account[at + ROLLED] = kind, start, used, 0
    account_touch(account)
    return
  end
  local present = account[at + START]
  if exactly or present < start then
    account[at + START], account[at + USED] = start, used
    account_touch(account)
  elseif present == start and used > account[at + USED] then
    account[at + USED] = used
    account_touch(account)
  end
  if account[at + ROLLED] == 1 and (exactly or present == start) then
    account[at + ROLLED] = 0
    account_touch(account)
  end
end

-- Entries of their own for these holds, where they are in a group.
local function read_alone(book, ids)
  book_read(book, ids)
  local missing
  for _, id in ipairs(ids) do
    if not book.texts[id] then
      missing = missing or {}
      missing[id] = true
    end
  end
  if missing then use('members').take_out(book, missing) end
end

-- What is read is read together.
local own = book_of(worker)
if adjusts[1] then
  local ids = {}
  for i, adjust in ipairs(adjusts) do ids[i] = adjust[1] end
  read_alone(own, ids)
end
if groups_over then
  local names = {}
  for i = 1, #groups_over, 4 do names[#names + 1] = groups_over[i] end
  book_read(own, names)
  for _, name in ipairs(names) do
    local text = own.texts[name]
    if text then
      local _, _, account_id = hold_unpacked(text)
      want(prefix .. 'a:' .. account_id)
    end
  end
end
local is_known = {}  -- a text that holds share
for _, remove in ipairs(removes) do
  local book = book_of(remove[1])
  read_alone(book, remove[3])
  for _, id in ipairs(remove[3]) do
    local text = book.texts[id]
    if text and not is_known[text] then
      is_known[text] = true
      local _, _, account_id = hold_unpacked(text)
      want(prefix .. 'a:' .. account_id)
    end
  end
end
for i = 1, #usages, 4 do want(prefix .. 'a:' .. usages[i]) end
for _, seed in ipairs(seeds) do want(prefix .. 'a:' .. seed[1]) end

for _, seed in ipairs(seeds) do
  local account, version, rows, exactly = account_of(seed[1]), seed[2], seed[3], seed[4] == 1
  if seed[5] == 1 then
    local named = {}
    for _, row in ipairs(rows) do named[row[1]] = true end
    for at = #account - SIZE + 1, 1, -SIZE do
      if not named[account[at]] then
        for _ = 1, SIZE do table.remove(account, at) end
        account_touch(account)
      end
    end
  end
  if account.version < version or exactly then
    account.version = version
    account_touch(account)
  end
  for _, row in ipairs(rows) do merge(account, row[1], row[2], row[3], exactly) end
  for _, row in ipairs(seed[6] or {}) do use('tiers').merge(account, row[1], row[2], row[3], exactly) end
end

for _, tier in ipairs(tiers_used ~= 0 and tiers_used or {}) do
  local account = account_of(tier[1])
  for _, row in ipairs(tier[2]) do use('tiers').merge(account, row[1], row[2], row[3]) end
end

for i = 1, #usages, 4 do merge(account_of(usages[i]), usages[i + 1], usages[i + 2], usages[i + 3]) end

for _, adjust in ipairs(adjusts) do
  local id, actual = adjust[1], adjust[2]
  local text = own.texts[id]
  if text then
    hold_release_slots(id, text)
    local amount, admitted, account_id, policy, _, terms = hold_unpacked(text)
    local units
    if type(actual) == 'table' then actual, units = actual[1], actual[2] end
    if terms and terms[TERMS_KIND] then
      use('tiers').hold(account_of(account_id), terms[TERMS_KIND], terms[TERMS_START], units - terms[TERMS_UNITS])
      terms[TERMS_UNITS] = units
    elseif amount ~= actual then
      account_hold(account_of(account_id), actual - amount)
    end
    own.texts[id] = hold_packed(actual, admitted, account_id, policy, nil, terms)
    own.changed[#own.changed + 1] = id
  end
end

for _, remove in ipairs(removes) do
  local book = book_of(remove[1])
  local found, gone = book.texts, book.gone
  local counts = {}  -- of holds that share a text
  for _, id in ipairs(remove[3]) do
    local text = found[id]
    if text then
      hold_release_slots(id, text)
      local number = 1
      if string.byte(text) == GROUPED then  -- as a whole: it came back from an old snapshot
        local _, _, _, _, mask = use('groups').unpacked(text)
        number = use('groups').count(mask)
      end
      counts[text] = (counts[text] or 0) + number
      found[id] = false
      gone[#gone + 1] = id
    end
  end
  for text, count in pairs(counts) do
    local amount, admitted, account_id, _, _, terms = hold_unpacked(text)
    local fall, account = amount * count, nil
    if terms and terms[TERMS_KIND] then
      account = account_of(account_id)
      fall = -use('tiers').hold(account, terms[TERMS_KIND], terms[TERMS_START], -terms[TERMS_UNITS] * count)
    elseif fall > 0 then
      account = account_of(account_id)
      account_hold(account, -fall)
    end
    if remove[2] == 1 and fall > 0 and account.is_rolled then use('rolled').posted(account, fall, admitted) end
  end
end

if groups_over then
  local groups = use('groups')
  for i = 1, #groups_over, 4 do
    local name, mask, number, posted = unpack(groups_over, i, i + 3)
    local text = own.texts[name]
    if text then
      local amount, admitted, account_id, policy, present, ids = groups.unpacked(text)
      local gone = bit.band(present, mask)
      if gone ~= mask then number = groups.count(gone) end
      if gone == present then
        own.texts[name] = false
        own.gone[#own.gone + 1] = name
      elseif gone ~= 0 then
        own.texts[name] = groups.packed(amount, admitted, account_id, policy, present - gone, ids)
        own.changed[#own.changed + 1] = name
      end
      if gone ~= 0 then
        local account = account_of(account_id)
        account_hold(account, -amount * number)
        if posted == 1 and account.is_rolled then use('rolled').posted(account, amount * number, admitted) end
      end
    end
  end
end
