-- Holds: hash cg:{p}:h:<worker>, hold id -> cmsgpack of [account id, amount, admitted_ms, policy name, slots or absent,
-- terms or absent]. Without a free tier in its terms (tiers.lua) a call's amount is part of its account's `h`.
-- `slots` are the concurrency limits (keys without the prefix) in which the call counts until it has ended.

local SLOTS = 5

local books = {}
-- Packed record -> record. What was held by one batch for like calls is the same text: it is packed once and unpacked
-- once. So a record is shared, and never changed: who needs another one makes another one.
local unpacked = {}

local function book_of(worker_id)
  local book = books[worker_id]
  if not book then
    book = {key = prefix .. 'h:' .. worker_id, records = {}, new = {}, written = {}, gone = {}}
    books[worker_id] = book
  end
  return book
end

-- A hold that is not there (any more) is `false`: settling twice, or what never was, changes nothing.
local function load_holds(book, ids)
  for first = 1, #ids, ARGUMENTS_MAX do
    local last = math.min(first + ARGUMENTS_MAX - 1, #ids)
    local texts = redis.call('HMGET', book.key, unpack(ids, first, last))
    for i = first, last do
      if book.records[ids[i]] == nil then
        local text = texts[i - first + 1]
        local record = text and unpacked[text]
        if text and not record then
          record = cmsgpack.unpack(text)
          unpacked[text] = record
        end
        book.records[ids[i]] = record
      end
    end
  end
end

-- A hold that was not there before; `text` as from packed.
local function add(book, id, text)
  local new = book.new
  new[#new + 1] = id
  new[#new + 1] = text
end

local function record_of(account_id, amount, admitted, policy, slots, terms)
  if terms then return {account_id, amount, admitted, policy, slots or false, terms} end
  return {account_id, amount, admitted, policy, slots or nil}
end

local function packed(account_id, amount, policy, slots, terms)
  return cmsgpack.pack(record_of(account_id, amount, now, policy, slots, terms))
end

local function change(book, id, record)
  book.records[id] = record
  book.written[#book.written + 1] = id
end

local function remove(book, id)
  book.records[id] = false
  book.gone[#book.gone + 1] = id
end

local function release_slots(id, record)
  for _, key in ipairs(record[SLOTS] or {}) do redis.call('SREM', prefix .. key, id) end
end

local function store()
  for _, book in pairs(books) do
    for _, id in ipairs(book.written) do
      if book.records[id] then add(book, id, cmsgpack.pack(book.records[id])) end
    end
    call_in_chunks('HSET', book.key, book.new)
    call_in_chunks('HDEL', book.key, book.gone)
  end
end

return {
  book_of = book_of, load = load_holds, add = add, packed = packed, record_of = record_of, change = change, remove = remove,
  release_slots = release_slots, store = store,
  -- Of a record.
  ACCOUNT = 1, AMOUNT = 2, ADMITTED = 3, POLICY = 4, TERMS = 6,
}
