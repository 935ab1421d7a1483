-- Calls of groups (groups.lua) by their ids.
-- Entries of a book that are read to find one: some 2 ms.
local READ_MAX = 250
local MEMBERS_TTL_MS = 3600000

local groups = use('groups')
local members = {}

function members.is_large(book_key)
  return redis.call('HLEN', book_key) > READ_MAX
end

-- Thousands of holds of a worker that died are removed some hundred at a time. Were its whole book read each time, Redis would be away
-- for longer than its time-out again and again. So where its calls are is known for an hour, by a hash hold id -> group's name;
-- `seq` in it is that of the book of which it has all.
function members.key_of(worker_id)
  return prefix .. 'members:' .. worker_id
end

local function remember(worker_id, rows)
  local key = members.key_of(worker_id)
  redis.call('HSET', key, unpack(rows))
  redis.call('PEXPIRE', key, MEMBERS_TTL_MS)
end

function members.know(worker_id, name, text)
  local _, _, _, _, mask, ids = groups.unpacked(text)
  local rows = {}
  for _, id in ipairs(groups.members(mask, ids)) do rows[#rows + 1], rows[#rows + 2] = id, name end
  if rows[1] then remember(worker_id, rows) end
end

function members.know_all(worker_id, seq)
  remember(worker_id, {'seq', seq})
end

-- Of these calls of the group those that still hold and are wanted become entries of their own.
local function take_out_of(book, name, text, wanted)
  local amount, admitted, account_id, policy, mask, ids = groups.unpacked(text)
  local left, bit_value = mask, 1
  for id in string.gmatch(ids, '[^,]+') do
    if wanted[id] and bit.band(mask, bit_value) ~= 0 then
      left = left - bit_value
      book.texts[id] = hold_packed(amount, admitted, account_id, policy)
      book.changed[#book.changed + 1] = id
    end
    bit_value = bit_value * 2
  end
  if left == 0 then
    book.texts[name] = false
    book.gone[#book.gone + 1] = name
  elseif left ~= mask then
    book.texts[name] = groups.packed(amount, admitted, account_id, policy, left, ids)
    book.changed[#book.changed + 1] = name
  end
end

local function all_of(book)
  local fields, found = redis.call('HGETALL', book.key), {}
  for i = 1, #fields, 2 do
    local name, text = fields[i], fields[i + 1]
    if book.texts[name] ~= nil then text = book.texts[name] end  -- changed by this batch already
    if name ~= 'epoch' and name ~= 'seq' and text and string.byte(text) == GROUPED then found[name] = text end
  end
  return found
end

-- Which groups of a large book the wanted holds are in, as name -> text; where to look for that is known (know).
local function known_in(book, wanted)
  local worker_id = string.sub(book.key, #prefix + #'h:' + 1)
  local key, seq = members.key_of(worker_id), redis.call('HGET', book.key, 'seq') or ''
  local ids, names, found, is_whole = {}, {}, {}, redis.call('HGET', key, 'seq') == seq
  for id in pairs(wanted) do ids[#ids + 1] = id end
  for first = 1, #ids, ARGUMENTS_MAX do
    for _, name in ipairs(redis.call('HMGET', key, unpack(ids, first, math.min(first + ARGUMENTS_MAX - 1, #ids)))) do
      if not (name or is_whole) then  -- nobody has looked through the book yet, or it had fewer groups then
        local all = all_of(book)
        for group, text in pairs(all) do members.know(worker_id, group, text) end
        members.know_all(worker_id, seq)
        return all
      end
      if name and found[name] == nil then
        found[name] = false
        names[#names + 1] = name
      end
    end
  end
  book_read(book, names)
  for _, name in ipairs(names) do found[name] = book.texts[name] or nil end
  return found
end

-- Holds of the book's groups that are wanted by their ids become entries of their own. Reads all of a book that is small, or the
-- worker's own, which seldom wants this.
function members.take_out(book, wanted)
  local is_read = book.key == KEYS[2] or not members.is_large(book.key)
  for name, text in pairs(is_read and all_of(book) or known_in(book, wanted)) do take_out_of(book, name, text, wanted) end
end

return members
