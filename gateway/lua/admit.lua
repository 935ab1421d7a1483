-- A whole batch, in its order; then all of it is written, money first.

-- A worker that lost its connection has a new one with a higher epoch. What it had sent on the old one and Redis reads only
-- now must not run: the worker has given its answers without it, and a hold taken now would never be settled.
-- The other way round, a book that is gone or older than the worker knows it means that this Redis lost data, or went back
-- to older data: then nothing here may be believed. A heartbeat also sees that others found so.
local book = redis.call('HMGET', KEYS[2], 'epoch', 'seq')
local epoch = tonumber(book[1])
if epoch and epoch > input[1] then return redis.error_reply('FENCED a newer connection of this worker exists') end
if epoch ~= input[1] or (tonumber(book[2]) or 0) < input[7] then return redis.error_reply('LOST the book is gone or old') end
if input[2] ~= 0 and redis.call('HGET', prefix .. 'life', 'g') ~= input[2] then
  return redis.error_reply('LOST another generation has begun')
end

if input[6] ~= 0 then use('settle')(unpack(input[6])) end

local reply = {now}
if input[5][1] then
  local decide = use('decide')
  for _, call in ipairs(input[5]) do decide(call, reply) end
end

local accounts, holds, limits = loaded.accounts, loaded.holds, loaded.limits
if holds then  -- something was asked or settled
  local own = holds.book_of(worker)
  if own.new[1] then holds.add(own, 'seq', input[8]) end
  accounts.store()
  if limits then limits.store() end
  holds.store()
end
if input[2] ~= 0 then redis.call('ZADD', KEYS[1], now, worker) end
return reply
