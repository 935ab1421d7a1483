-- A worker that has just connected, or was told LOST, finds out whether this Redis still knows what the workers know.
-- KEYS[1] cg:{p}:life           hash: the generation of this partition's data
--           g       its id, "<number>.<random>"      run    the server process that it lives in
--           layout  how accounts, limits and holds are written
--           opens   Redis ms from when on calls are admitted      m:<worker>  how far the worker is, see opens.lua
-- KEYS[2] the worker's book     KEYS[3] cg:{p}:swept:<worker>, there where a sweeper took the book for a dead worker's
-- ARGV[1] run id of the server  ARGV[2] the generation that the worker knows, or ''   ARGV[3] random part of a new one
-- ARGV[4] the worker's next epoch   ARGV[5] its last one, 0 before the first   ARGV[6] the highest seq it knows written
-- ARGV[7] '1' where the worker admitted calls elsewhere     ARGV[8] how long a new generation stays shut, ms
-- ARGV[9] '1' where it had not come to admit in the generation that it knows: it goes all the way again
-- Reply   [generation, ms until it opens, 1 where the book is whole, why a new generation began or '']
--
-- A generation ends with whatever could have lost or brought back holds. Whoever notices first begins the next; the others
-- find it begun. In the next one every worker puts its own holds in place again before anybody admits. Each has a higher
-- number than all that are known here and to the worker: one that is not higher than a worker's own, and not that, is of a
-- server that others left behind (a former primary that is one again), and lacks what was held since.
-- Of any other layout nothing can be read: such data are as good as lost, and the holds of workers that wrote them are dropped.
local LAYOUT = '2'

local life = redis.call('HMGET', KEYS[1], 'g', 'run', 'opens', 'layout')
local book = redis.call('HMGET', KEYS[2], 'epoch', 'seq')
local swept = redis.call('DEL', KEYS[3]) == 1
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function number_of(generation)
  return tonumber(string.match(generation or '', '^(%d+)%.')) or 0
end

local why, whole = '', 0
if not life[1] then
  why = 'empty'
elseif life[4] ~= LAYOUT then
  why = 'layout'
elseif life[2] ~= ARGV[1] then
  why = 'replaced'
elseif life[1] == ARGV[2] then
  if ARGV[7] == '1' then
    why = 'elsewhere'
  elseif ARGV[9] == '0' and not swept then
    local there = book[1] and tonumber(book[1]) >= tonumber(ARGV[5]) and (tonumber(book[2]) or 0) >= tonumber(ARGV[6])
    if there then whole = 1 else why = 'behind' end
  end
elseif number_of(life[1]) <= number_of(ARGV[2]) then
  why = 'behind'
end

local generation, opens = life[1], tonumber(life[3])
if why ~= '' then
  local number = math.max(number_of(life[1]), number_of(ARGV[2])) + 1
  generation, opens = string.format('%.0f.%s', number, ARGV[3]), now + tonumber(ARGV[8])
  redis.call('DEL', KEYS[1])
  -- The others must hear of it before they admit another call, and not at their next heartbeat: without its epoch a book
  -- answers LOST.
  local prefix = string.sub(KEYS[1], 1, -#'life' - 1)
  for _, other in ipairs(redis.call('ZRANGE', prefix .. 'workers', 0, -1)) do
    local other_book = prefix .. 'h:' .. other
    if why == 'layout' then redis.call('DEL', other_book) else redis.call('HDEL', other_book, 'epoch') end
  end
  redis.call('HSET', KEYS[1], 'g', generation, 'run', ARGV[1], 'opens', opens, 'layout', LAYOUT)
end
if whole == 0 then redis.call('HDEL', KEYS[1], 'm:' .. string.match(KEYS[2], ':h:(.*)')) end
redis.call('HSET', KEYS[2], 'epoch', ARGV[4])
return {generation, math.max(0, opens - now), whole, why}
