-- What calls under way hold of one account, as the books have it: for the console. Reads only.
-- KEYS[1] cg:{p}:workers   ARGV[1] account id   ARGV[2] how many holds are looked through at most   ARGV[3] how many are listed
-- Reply: [now_ms, holds of the account or -1 where there are too many in all, their sum, [[hold id, amount, admitted_ms, policy,
-- worker id], …]], the oldest first
-- Redis serves nobody else meanwhile: some 2 µs a hold. The record of a hold: holds.lua.
local prefix = string.sub(KEYS[1], 1, -#'workers' - 1)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local books, count = {}, 0
for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local key = prefix .. 'h:' .. worker
  books[#books + 1] = {worker, key}
  count = count + redis.call('HLEN', key)
end
if count > tonumber(ARGV[2]) then return {now, -1, 0, {}} end

local unpacked, found, sum = {}, {}, 0
for _, book in ipairs(books) do
  local fields = redis.call('HGETALL', book[2])
  for i = 1, #fields, 2 do
    local id, text = fields[i], fields[i + 1]
    if id ~= 'epoch' and id ~= 'seq' then
      local record = unpacked[text] or cmsgpack.unpack(text)
      unpacked[text] = record
      if record[1] == ARGV[1] then
        sum = sum + record[2]
        found[#found + 1] = {id, record[2], record[3], record[4], book[1]}
      end
    end
  end
end
table.sort(found, function(one, other)
  if one[3] ~= other[3] then return one[3] < other[3] end
  return one[1] < other[1]
end)
local holds = #found
for i = #found, tonumber(ARGV[3]) + 1, -1 do found[i] = nil end
return {now, holds, sum, found}
