-- What calls under way hold of one account, as the books have it: for the console. Reads only.
-- KEYS[1] cg:{p}:workers   ARGV[1] account id   ARGV[2] how many entries are looked through at most   ARGV[3] how many are listed
-- Reply: [now_ms, holds of the account or -1 where there are too many in all, their sum, [[hold id, amount, admitted_ms, policy,
-- worker id], …]], the oldest first
-- Redis serves nobody else meanwhile: some 2 µs an entry of a book, which is a hold or a group. A hold: holds.lua.

local books, count = {}, 0
for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local key = prefix .. 'h:' .. worker
  books[#books + 1] = {worker, key}
  count = count + redis.call('HLEN', key)
end
if count > tonumber(ARGV[2]) then return {now, -1, 0, {}} end

local found, holds, sum = {}, 0, 0  -- each entry of a book once, also where it is of many calls
for _, book in ipairs(books) do
  local fields = redis.call('HGETALL', book[2])
  for i = 1, #fields, 2 do
    local id, text = fields[i], fields[i + 1]
    if id ~= 'epoch' and id ~= 'seq' and string.byte(text) <= GROUPED then
      local amount, admitted, account_id, policy = hold_unpacked(text)
      if account_id == ARGV[1] then
        local number, is_group = 1, string.byte(text) == GROUPED
        if is_group then number = use('groups').size(text) end
        holds, sum = holds + number, sum + amount * number
        found[#found + 1] = {id, amount, admitted, policy, book[1], is_group and text}
      end
    end
  end
end
local function is_before(one, other)
  if one[3] ~= other[3] then return one[3] < other[3] end
  return one[1] < other[1]
end
table.sort(found, is_before)

-- The calls of the oldest entries, and of those that are as old as the last of them.
local list, list_max = {}, tonumber(ARGV[3])
for _, entry in ipairs(found) do
  if #list >= list_max and entry[3] > list[#list][3] then break end
  local members = {entry[1]}
  if entry[6] then
    local _, _, _, _, mask, ids = use('groups').unpacked(entry[6])
    members = use('groups').members(mask, ids)
  end
  for _, id in ipairs(members) do list[#list + 1] = {id, entry[2], entry[3], entry[4], entry[5]} end
end
table.sort(list, is_before)
for i = #list, list_max + 1, -1 do list[i] = nil end
return {now, holds, sum, list}
