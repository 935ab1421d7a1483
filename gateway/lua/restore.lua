-- A worker puts its own holds in place, as it knows them: those that are missing are added, amounts and slots corrected.
-- May be repeated; holds that are here and not named stay.
-- ARGV[1] JSON: [epoch, generation, [[hold id, account id or "", amount, admitted_ms, policy name, [slot key, …],
-- terms or absent, price of the tier as num, den], …]]
local accounts, holds = use('accounts'), use('holds')
local epoch, generation, rows = input[1], input[2], input[3]

if redis.call('HGET', prefix .. 'life', 'g') ~= generation then
  return redis.error_reply('LOST another generation has begun')
end
if tonumber(redis.call('HGET', KEYS[2], 'epoch')) ~= epoch then
  return redis.error_reply('FENCED a newer connection of this worker exists')
end

local own = holds.book_of(worker)
local ids = {}
for i, row in ipairs(rows) do ids[i] = row[1] end
holds.load(own, ids)
for _, row in ipairs(rows) do
  local id, account_id, amount, slots = row[1], row[2], row[3], row[6]
  local present = own.records[id]
  local difference = amount - (present and present[holds.AMOUNT] or 0)
  local terms = row[7]
  if terms and terms[1] then
    local tiers = use('tiers')
    local account, kind, start = accounts.load(account_id, {}), terms[tiers.TERMS_KIND], terms[tiers.TERMS_START]
    local window = tiers.window_at(account, kind, start)
    if not window then
      -- Nobody has told yet what was used of it: until then all of its calls are held at their price.
      window = tiers.open(account, kind, start, false)
    end
    if window[tiers.LIMIT] == 0 then tiers.price(account, kind, window, terms[tiers.TERMS_LIMIT], row[8], row[9]) end
    local before = present and present[holds.TERMS] and present[holds.TERMS][tiers.TERMS_UNITS] or 0
    tiers.hold(account, kind, start, terms[tiers.TERMS_UNITS] - before)
  elseif account_id ~= '' and difference ~= 0 then
    accounts.hold(accounts.load(account_id, {}), difference)
  end
  if present then holds.release_slots(id, present) end
  for _, key in ipairs(slots) do
    redis.call('SADD', prefix .. key, id)
    redis.call('PEXPIRE', prefix .. key, use('limits_concurrency').TTL_MS)
  end
  holds.change(own, id, holds.record_of(account_id, amount, row[4], row[5], slots[1] and slots, terms))
end

accounts.store()
holds.store()
redis.call('ZADD', KEYS[1], now, worker)
return #rows
