-- What happened since the last batch, before anything new is asked. Each part may be repeated without harm:
--   seeds    [[account id, version, [[kind, start_ms, used], …], exactly, alone (1 or 0), tiers or absent], …]   sums read from
--            Postgres; `exactly`: even where more or newer is known here, for that is of a ledger that exists no longer
--            `alone`: what is known here of other windows is not to be believed
--   usages   [[account id, [[kind, start_ms, used], …]], …]            the same, returned by a write of the ledger
--   adjusts  [[hold id, actual amount or [amount, units]], …]          calls of this worker that ended
--   removes  [[worker id, posted (0 or 1), [hold id, …]], …]           posted, voided or expired holds
--   tiers    [[account id, [[kind, start_ms, used units], …]], …] or absent   what a write of the ledger returned of free tiers

local accounts, holds = use('accounts'), use('holds')
local ACCOUNT, AMOUNT, ADMITTED, POLICY, TERMS = holds.ACCOUNT, holds.AMOUNT, holds.ADMITTED, holds.POLICY, holds.TERMS
local UNITS = 4  -- of terms

local function settle(seeds, usages, adjusts, removes, tiers_used)
  for _, seed in ipairs(seeds) do
    local account = accounts.load(seed[1], seed[3])
    if seed[5] == 1 then accounts.forget_others(account, seed[3]) end
    local exactly = seed[4] == 1
    if not account.version or account.version < seed[2] or exactly then
      account.version = seed[2]
      accounts.set(account, 'v', seed[2])
    end
    for _, row in ipairs(seed[3]) do
      if exactly then accounts.set_window(account, row[1], row[2], row[3]) end
      accounts.merge(account, row[1], row[2], row[3])
    end
    for _, row in ipairs(seed[6] or {}) do use('tiers').merge(account, row[1], row[2], row[3], exactly) end
  end

  for _, tier in ipairs(tiers_used or {}) do
    local account = accounts.load(tier[1], {})
    for _, row in ipairs(tier[2]) do use('tiers').merge(account, row[1], row[2], row[3]) end
  end

  for _, usage in ipairs(usages) do
    local account = accounts.load(usage[1], usage[2])
    for _, row in ipairs(usage[2]) do accounts.merge(account, row[1], row[2], row[3]) end
  end

  local ids = {}
  for i, adjust in ipairs(adjusts) do ids[i] = adjust[1] end
  local own = holds.book_of(worker)
  holds.load(own, ids)
  for _, adjust in ipairs(adjusts) do
    local id, actual = adjust[1], adjust[2]
    local record = own.records[id]
    if record then
      holds.release_slots(id, record)
      local account_id, terms = record[ACCOUNT], record[TERMS]
      if terms then
        local units
        if type(actual) == 'table' then actual, units = actual[1], actual[2] end
        terms = {unpack(terms, 1, 7)}
        local kind, start = unpack(terms)
        if kind then
          use('tiers').hold(accounts.load(account_id, {}), kind, start, units - terms[UNITS])
          terms[UNITS] = units
        end
      end
      if record[AMOUNT] ~= actual and not (terms and terms[1]) then
        accounts.hold(accounts.load(account_id, {}), actual - record[AMOUNT])
      end
      holds.change(own, id, holds.record_of(account_id, actual, record[ADMITTED], record[POLICY], nil, terms))
    end
  end

  for _, remove in ipairs(removes) do
    local book = holds.book_of(remove[1])
    holds.load(book, remove[3])
    local counts = {}  -- of holds that share a record
    for _, id in ipairs(remove[3]) do
      local record = book.records[id]
      if record then
        holds.release_slots(id, record)
        counts[record] = (counts[record] or 0) + 1
        holds.remove(book, id)
      end
    end
    for record, count in pairs(counts) do
      local amount, terms = record[AMOUNT] * count, record[TERMS]
      local kind, start = false, false
      if terms then kind, start = unpack(terms) end
      if kind then
        local account = accounts.load(record[ACCOUNT], {})
        local rise = use('tiers').hold(account, kind, start, -terms[UNITS] * count)
        if remove[2] == 1 and rise < 0 then accounts.posted(record[ACCOUNT], -rise, record[ADMITTED]) end
      elseif amount > 0 then
        accounts.hold(accounts.load(record[ACCOUNT], {}), -amount)
        if remove[2] == 1 then accounts.posted(record[ACCOUNT], amount, record[ADMITTED]) end
      end
    end
  end
end

return settle
