-- What happened since the last batch, before anything new is asked. Each part may be repeated without harm:
--   seeds    [[account id, version, [[kind, start_ms, used], …], exactly, alone (1 or 0)], …]   sums read from Postgres;
--            `exactly`: even where more or newer is known here, for that is of a ledger that exists no longer
--            `alone`: what is known here of other windows is not to be believed
--   usages   [[account id, [[kind, start_ms, used], …]], …]            the same, returned by a write of the ledger
--   adjusts  [[hold id, actual amount], …]                             calls of this worker that ended
--   removes  [[worker id, posted (0 or 1), [hold id, …]], …]           posted, voided or expired holds

local function settle(seeds, usages, adjusts, removes)
  for _, seed in ipairs(seeds) do
    local account = account_load(seed[1], seed[3])
    if seed[5] == 1 then account_forget_others(account, seed[3]) end
    if not account.version or account.version < seed[2] or seed[4] == 1 then
      account.version = seed[2]
      account_set(account, 'v', seed[2])
    end
    for _, row in ipairs(seed[3]) do
      if seed[4] == 1 then account_set_window(account, row[1], row[2], row[3]) end
      account_merge(account, row[1], row[2], row[3])
    end
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
      local account_id = record[HOLD_ACCOUNT]
      if record[HOLD_AMOUNT] ~= actual then
        account_hold(account_load(account_id, {}), actual - record[HOLD_AMOUNT])
      end
      hold_change(own, id, {account_id, actual, record[HOLD_ADMITTED], record[HOLD_POLICY]})
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
      local amount = record[HOLD_AMOUNT] * count
      if amount > 0 then
        account_hold(account_load(record[HOLD_ACCOUNT], {}), -amount)
        if remove[2] == 1 then account_posted(record[HOLD_ACCOUNT], amount, record[HOLD_ADMITTED]) end
      end
    end
  end
end
