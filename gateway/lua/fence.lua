-- Whether this call may run at all.
--
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

-- Most calls of a worker that waits for its upstream say only this, and make none of what follows.
if not input[5][1] and input[6] == 0 then
  if input[2] ~= 0 then redis.call('ZADD', KEYS[1], now, worker) end
  return {now}
end
