-- A worker puts its own holds in place, as it knows them: those that are missing are added, amounts and slots corrected.
-- May be repeated; holds that are here and not named stay.
-- ARGV[1] JSON: [epoch, generation, [[hold id, account id or "", amount, admitted_ms, policy name, [slot key, …],
-- terms or absent, price of the tier as num, den], …], [[group's name, account id or "", amount, admitted_ms, policy name,
-- mask, ids], …]]; a mask of 0: none of its calls still holds, and the rest of the row is blank
local TERMS_KIND, TERMS_START, TERMS_UNITS, TERMS_LIMIT = 1, 2, 4, 5
local TIER_LIMIT = 4
local epoch, generation, rows, groups = input[1], input[2], input[3], input[4]

if redis.call('HGET', prefix .. 'life', 'g') ~= generation then
  return redis.error_reply('LOST another generation has begun')
end
if tonumber(redis.call('HGET', KEYS[2], 'epoch')) ~= epoch then
  return redis.error_reply('FENCED a newer connection of this worker exists')
end

local own = book_of(worker)
local ids = {}
for i, row in ipairs(rows) do
  ids[i] = row[1]
  if row[2] ~= '' then want(prefix .. 'a:' .. row[2]) end
end
for i, row in ipairs(groups) do
  ids[#rows + i] = row[1]
  if row[2] ~= '' then want(prefix .. 'a:' .. row[2]) end
end
book_read(own, ids)
if groups[1] then redis.call('DEL', use('members').key_of(worker)) end  -- it may have more groups now
for _, row in ipairs(groups) do
  local name, account_id, amount, mask, ids_text = row[1], row[2], row[3], row[6], row[7]
  local known, before = use('groups'), 0
  local present = own.texts[name]
  if present then
    local amount_before, _, account_before, _, mask_before = known.unpacked(present)
    account_id, before = account_before, amount_before * known.count(mask_before)
  end
  local difference = amount * known.count(mask) - before
  if account_id ~= '' and difference ~= 0 then account_hold(account_of(account_id), difference) end
  if mask > 0 then
    own.texts[name] = known.packed(amount, row[4], account_id, row[5], mask, ids_text)
    own.changed[#own.changed + 1] = name
  elseif present then
    own.texts[name] = false
    own.gone[#own.gone + 1] = name
  end
end
for _, row in ipairs(rows) do
  local id, account_id, amount, slots, terms = row[1], row[2], row[3], row[6], row[7]
  local present = own.texts[id]
  local amount_before, terms_before = 0, nil
  if present then
    local _
    amount_before, _, _, _, _, terms_before = hold_unpacked(present)
    hold_release_slots(id, present)
  end
  if terms and terms[TERMS_KIND] then
    local tiers = use('tiers')
    local account, kind, start = account_of(account_id), terms[TERMS_KIND], terms[TERMS_START]
    local window = tiers.window_at(account, kind, start)
    if not window then
      -- Nobody has told yet what was used of it: until then all of its calls are held at their price.
      window = tiers.open(account, kind, start, false)
    end
    if window[TIER_LIMIT] == 0 then tiers.price(account, window, terms[TERMS_LIMIT], row[8], row[9]) end
    local before = terms_before and terms_before[TERMS_UNITS] or 0
    tiers.hold(account, kind, start, terms[TERMS_UNITS] - before)
  elseif account_id ~= '' and amount ~= amount_before then
    account_hold(account_of(account_id), amount - amount_before)
  end
  for _, key in ipairs(slots) do
    redis.call('SADD', prefix .. key, id)
    redis.call('PEXPIRE', prefix .. key, use('limits_concurrency').TTL_MS)
  end
  own.texts[id] = hold_packed(amount, row[4], account_id, row[5], slots[1] and slots, terms)
  own.changed[#own.changed + 1] = id
end

accounts_store()
books_store()
redis.call('ZADD', KEYS[1], now, worker)
return #rows + #groups
