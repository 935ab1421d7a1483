-- What is known here of accounts, all of one moment: for castgate reconcile and the drift metrics.
-- KEYS[1] cg:{p}:workers   ARGV[1] how many holds are looked through at most   ARGV[2] holds older than this many ms are listed
-- ARGV[3] JSON: [account id, …]   ARGV[4] JSON: [account id, …] whose `h` is set to what their holds come to
-- Reply: [holds looked through, or -1 where there are too many, [account, …], [worker id, hold id, account id, amount, …]]
--   account: [held, sum of its holds, [field, value, …]]; all of it empty where the account is not known here. A free tier's
--            newest window is shown as other windows are, in units
-- Redis serves nobody else meanwhile: some 2 µs a hold.
local prefix = string.sub(KEYS[1], 1, -#'workers' - 1)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local OLD_MAX = 1000
local tiers = use('tiers')

local books, count = {}, 0
for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local key = prefix .. 'h:' .. worker
  books[#books + 1] = {worker, key}
  count = count + redis.call('HLEN', key)
end

-- What the free tiers of an account hold if its calls do: all of it comes from their holds and what was used.
local units = {}  -- account id -> kind, start -> held

local function tiers_of(id, fields)
  local reserve, packed, shown = 0, {}, {}
  for i = 1, #fields, 2 do
    local kind = string.match(fields[i], '^f:(.*)$')
    if kind then
      local windows = cmsgpack.unpack(fields[i + 1])
      for _, window in ipairs(windows) do
        window[tiers.HELD] = (units[id] or {})[kind .. ' ' .. string.format('%.0f', window[tiers.START])] or 0
        window[tiers.RESERVE] = tiers.reserve_for(window, window[tiers.HELD])
        reserve = reserve + window[tiers.RESERVE]
      end
      if windows[1] and windows[1][tiers.USED] then
        shown[#shown + 1] = 's:' .. kind
        shown[#shown + 1] = string.format('%.0f', windows[1][tiers.START])
        shown[#shown + 1] = 'u:' .. kind
        shown[#shown + 1] = string.format('%.0f', windows[1][tiers.USED])
      end
      packed[#packed + 1] = fields[i]
      packed[#packed + 1] = tiers.packed(windows)
    end
  end
  return reserve, packed, shown
end

local sums, old = {}, {}
local is_known = count <= tonumber(ARGV[1])
if is_known then
  local unpacked = {}
  for _, book in ipairs(books) do
    local fields = redis.call('HGETALL', book[2])
    for i = 1, #fields, 2 do
      local id, text = fields[i], fields[i + 1]
      if id ~= 'epoch' and id ~= 'seq' then
        local record = unpacked[text] or cmsgpack.unpack(text)
        unpacked[text] = record
        local terms = record[6]
        if terms and terms[tiers.TERMS_KIND] then
          local of_account, tier = units[record[1]] or {}, terms[tiers.TERMS_KIND] .. ' ' .. string.format('%.0f', terms[tiers.TERMS_START])
          units[record[1]] = of_account
          of_account[tier] = (of_account[tier] or 0) + terms[tiers.TERMS_UNITS]
        else
          sums[record[1]] = (sums[record[1]] or 0) + record[2]
        end
        if now - record[3] > tonumber(ARGV[2]) and #old < 4 * OLD_MAX then
          for _, part in ipairs({book[1], id, record[1], record[2]}) do old[#old + 1] = part end
        end
      end
    end
  end
  for _, id in ipairs(cjson.decode(ARGV[4])) do
    local key = prefix .. 'a:' .. id
    if redis.call('EXISTS', key) == 1 then
      local reserve, packed = tiers_of(id, redis.call('HGETALL', key))
      redis.call('HSET', key, 'h', (sums[id] or 0) + reserve, unpack(packed))
    end
  end
end

local accounts = {}
for _, id in ipairs(cjson.decode(ARGV[3])) do
  local key = prefix .. 'a:' .. id
  if redis.call('EXISTS', key) == 1 then
    local fields = redis.call('HGETALL', key)
    local reserve, _, shown = tiers_of(id, fields)
    for _, value in ipairs(shown) do fields[#fields + 1] = value end
    accounts[#accounts + 1] = {tonumber(redis.call('HGET', key, 'h')) or 0, (sums[id] or 0) + reserve, fields}
  else
    accounts[#accounts + 1] = {}
  end
end
return {is_known and count or -1, accounts, old}
