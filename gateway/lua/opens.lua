-- The way from a new generation to one that admits, which all workers go together. Each says how far it is:
--   1  its holds are in place; calls are still admitted elsewhere
--   2  nothing is admitted elsewhere any more, and what was is in place too
-- KEYS[1] cg:{p}:life   ARGV[1] generation   ARGV[2] worker   ARGV[3] how far it is   ARGV[4…] the workers that live, where that is known
-- Reply [ms until it opens, how far all are], or an error that begins with LOST. Once all that live are at 2 it opens; where one
-- does not answer, or nobody knows who lives, when its time has come.
local life = redis.call('HMGET', KEYS[1], 'g', 'opens')
if life[1] ~= ARGV[1] then return redis.error_reply('LOST another generation has begun') end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local left = tonumber(life[2]) - now
redis.call('HSET', KEYS[1], 'm:' .. ARGV[2], ARGV[3])
if left <= 0 then return {0, 2} end

local least = #ARGV > 3 and tonumber(ARGV[3]) or 0
for i = 4, #ARGV do
  least = math.min(least, tonumber(redis.call('HGET', KEYS[1], 'm:' .. ARGV[i])) or 0)
end
if least < 2 then return {left, least} end
redis.call('HSET', KEYS[1], 'opens', now)
return {0, 2}
