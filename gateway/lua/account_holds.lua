-- What calls under way hold of one account, as the books have it: for the console. Reads only.
-- KEYS[1] cg:{p}:workers   ARGV[1] account id   ARGV[2] how many holds are looked through at most   ARGV[3] how many are listed
-- Reply: [now_ms, holds of the account or -1 where there are too many in all, their sum, [[hold id, amount, admitted_ms, policy,
-- worker id], …]], the oldest first
-- Redis serves nobody else meanwhile: some 2 µs a hold. A hold: holds.lua.

local books, count = {}, 0
for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local key = prefix .. 'h:' .. worker
  books[#books + 1] = {worker, key}
  count = count + redis.call('HLEN', key)
end
if count > tonumber(ARGV[2]) then return {now, -1, 0, {}} end

local found, sum = {}, 0
for _, book in ipairs(books) do
  local fields = redis.call('HGETALL', book[2])
  for i = 1, #fields, 2 do
    local id = fields[i]
    if id ~= 'epoch' and id ~= 'seq' and string.byte(fields[i + 1]) <= GROUPED then
      local amount, admitted, account_id, policy = hold_unpacked(fields[i + 1])
      if account_id == ARGV[1] then
        local members = {id}
        if string.byte(fields[i + 1]) == GROUPED then
          local groups = use('groups')
          local _, _, _, _, mask, ids = groups.unpacked(fields[i + 1])
          members = groups.members(mask, ids)
        end
        for _, member in ipairs(members) do
          sum = sum + amount
          found[#found + 1] = {member, amount, admitted, policy, book[1]}
        end
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
