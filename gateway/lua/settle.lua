-- What happened since the last batch, before anything new is asked. Each part may be repeated without harm:
--   seeds    [[account id, version, [[kind, start_ms, used], …], exactly, alone (1 or 0), tiers or absent], …]   sums read from
--            Postgres; `exactly`: even where more or newer is known here, for that is of a ledger that exists no longer
--            `alone`: what is known here of other windows is not to be believed
--   usages   [[account id, [[kind, start_ms, used], …]], …]            the same, returned by a write of the ledger
--   adjusts  [[hold id, actual amount or [amount, units]], …]          calls of this worker that ended
--   removes  [[worker id, posted (0 or 1), [hold id, …]], …]           posted, voided or expired holds
--   tiers    [[account id, [[kind, start_ms, used units], …]], …] or absent   what a write of the ledger returned of free tiers

local function settle(seeds, usages, adjusts, removes, tiers)
  for _, seed in ipairs(seeds) do
    local account = account_load(seed[1], seed[3])
    if seed[5] == 1 then account_forget_others(account, seed[3]) end
    local exactly = seed[4] == 1
    if not account.version or account.version < seed[2] or exactly then
      account.version = seed[2]
      account_set(account, 'v', seed[2])
    end
    for _, row in ipairs(seed[3]) do
      if exactly then account_set_window(account, row[1], row[2], row[3]) end
      account_merge(account, row[1], row[2], row[3])
    end
    for _, row in ipairs(seed[6] or {}) do tier_merge(account, row[1], row[2], row[3], exactly) end
  end

  for _, tier in ipairs(tiers or {}) do
    local account = account_load(tier[1], {})
    for _, row in ipairs(tier[2]) do tier_merge(account, row[1], row[2], row[3]) end
  end

  for _, usage in ipairs(usages) do
    local account = account_load(usage[1], usage[2])
    for _, row in ipairs(usage[2]) do account_merge(account, row[1], row[2], row[3]) end
  end

  local ids = {}
  for i, adjust in ipairs(adjusts) do ids[i] = adjust[1] end
  local own = book_of(worker)
  holds_load(own, ids)
  for _, adjust in ipairs(adjusts) do
    local id, actual = adjust[1], adjust[2]
    local record = own.records[id]
    if record then
      hold_release_slots(id, record)
      local account_id, terms = record[HOLD_ACCOUNT], record[HOLD_TERMS]
      if terms then
        local units
        if type(actual) == 'table' then actual, units = actual[1], actual[2] end
        terms = {unpack(terms, 1, 7)}
        if terms[TERMS_KIND] then
          tier_hold(account_load(account_id, {}), terms[TERMS_KIND], terms[TERMS_START], units - terms[TERMS_UNITS])
          terms[TERMS_UNITS] = units
        end
      end
      if record[HOLD_AMOUNT] ~= actual and not (terms and terms[TERMS_KIND]) then
        account_hold(account_load(account_id, {}), actual - record[HOLD_AMOUNT])
      end
      hold_change(own, id, hold_record(account_id, actual, record[HOLD_ADMITTED], record[HOLD_POLICY], nil, terms))
    end
  end

  for _, remove in ipairs(removes) do
    local book = book_of(remove[1])
    holds_load(book, remove[3])
    local counts = {}  -- of holds that share a record
    for _, id in ipairs(remove[3]) do
      local record = book.records[id]
      if record then
        hold_release_slots(id, record)
        counts[record] = (counts[record] or 0) + 1
        hold_remove(book, id)
      end
    end
    for record, count in pairs(counts) do
      local amount, terms = record[HOLD_AMOUNT] * count, record[HOLD_TERMS]
      if terms and terms[TERMS_KIND] then
        local account = account_load(record[HOLD_ACCOUNT], {})
        local rise = tier_hold(account, terms[TERMS_KIND], terms[TERMS_START], -terms[TERMS_UNITS] * count)
        if remove[2] == 1 and rise < 0 then account_posted(record[HOLD_ACCOUNT], -rise, record[HOLD_ADMITTED]) end
      elseif amount > 0 then
        account_hold(account_load(record[HOLD_ACCOUNT], {}), -amount)
        if remove[2] == 1 then account_posted(record[HOLD_ACCOUNT], amount, record[HOLD_ADMITTED]) end
      end
    end
  end
end
