-- A whole batch, in its order; then all of it is written, money first.

local entries, shapes, calls, states = input[3], input[4], input[5], {}
for at = 1, #calls, CALL_SIZE do  -- what is to be read for them is read together, with what settling needs
  local entry, _, shape, _, values = unpack(calls, at, at + 4)
  local id = entries[ENTRY_SIZE * (entry - 1) + 1]
  if id then want(prefix .. 'a:' .. id) end
  for i, row in ipairs(shapes[shape][2]) do states[#states + 1] = limit_state(row, values == 0 and id or values[i]) end
end
if input[6] ~= 0 then run('settle') end
local reply = calls[1] and run('decide', states) or {now}

local own = books[worker]
if own and own.new[1] then
  own.new[#own.new + 1] = 'seq'
  own.new[#own.new + 1] = input[8]
end
accounts_store()
for i = 1, #limits_taken, 2 do limits_taken[i + 1].limiter.store(limits_taken[i], limits_taken[i + 1]) end
books_store()
if input[2] ~= 0 then redis.call('ZADD', KEYS[1], now, worker) end
return reply
