-- What becomes of holds in a batch: a worker's book, as far as it was read, and what is written at the end.
local books = {}

local function call_in_chunks(command, key, arguments)
  for first = 1, #arguments, ARGUMENTS_MAX do
    redis.call(command, key, unpack(arguments, first, math.min(first + ARGUMENTS_MAX - 1, #arguments)))
  end
end

local function book_of(worker_id)
  local book = books[worker_id]
  if not book then
    book = {key = prefix .. 'h:' .. worker_id, texts = {}, new = {}, changed = {}, gone = {}}
    books[worker_id] = book
  end
  return book
end

-- A hold that is not there (any more) has the text `false`: settling twice, or what never was, changes nothing.
local function book_read(book, ids)
  local found_of = book.texts
  for first = 1, #ids, ARGUMENTS_MAX do
    local last = math.min(first + ARGUMENTS_MAX - 1, #ids)
    local found = redis.call('HMGET', book.key, unpack(ids, first, last))
    for i = first, last do
      if found_of[ids[i]] == nil then found_of[ids[i]] = found[i - first + 1] end
    end
  end
end

local function books_store()
  for _, book in pairs(books) do
    local new = book.new
    for _, id in ipairs(book.changed) do
      if book.texts[id] then new[#new + 1], new[#new + 2] = id, book.texts[id] end
    end
    call_in_chunks('HSET', book.key, new)
    call_in_chunks('HDEL', book.key, book.gone)
  end
end
