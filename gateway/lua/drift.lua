-- What is known here of accounts, all of one moment: for castgate reconcile and the drift metrics.
-- KEYS[1] cg:{p}:workers   ARGV[1] how many holds are looked through at most   ARGV[2] holds older than this many ms are listed
-- ARGV[3] JSON: [account id, …]   ARGV[4] JSON: [account id, …] whose `h` is set to what their holds come to
-- Reply: [holds looked through, or -1 where there are too many, [account, …], [worker id, hold id, account id, amount, …]]
--   account: [held, sum of its holds, [field, value, …]]; all of it empty where the account is not known here
-- Redis serves nobody else meanwhile: some 2 µs a hold.
local prefix = string.sub(KEYS[1], 1, -#'workers' - 1)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local OLD_MAX = 1000

local books, count = {}, 0
for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local key = prefix .. 'h:' .. worker
  books[#books + 1] = {worker, key}
  count = count + redis.call('HLEN', key)
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
        sums[record[1]] = (sums[record[1]] or 0) + record[2]
        if now - record[3] > tonumber(ARGV[2]) and #old < 4 * OLD_MAX then
          for _, part in ipairs({book[1], id, record[1], record[2]}) do old[#old + 1] = part end
        end
      end
    end
  end
  for _, id in ipairs(cjson.decode(ARGV[4])) do
    local key = prefix .. 'a:' .. id
    if redis.call('EXISTS', key) == 1 then redis.call('HSET', key, 'h', sums[id] or 0) end
  end
end

local accounts = {}
for _, id in ipairs(cjson.decode(ARGV[3])) do
  local key = prefix .. 'a:' .. id
  if redis.call('EXISTS', key) == 1 then
    accounts[#accounts + 1] = {tonumber(redis.call('HGET', key, 'h')) or 0, sums[id] or 0, redis.call('HGETALL', key)}
  else
    accounts[#accounts + 1] = {}
  end
end
return {is_known and count or -1, accounts, old}
