-- One script call decides a whole batch: admit.lua says in which order, modules.lua how these files become one script.
-- State is read at most once a batch and written once at its end, so what a batch costs grows with the accounts and
-- limiters it touches, not with its calls; and a script that fails on its first write (out of memory, read-only replica)
-- has changed no money.
--
-- KEYS[1]  cg:{p}:workers       zset: worker id -> when it last spoke, Redis ms. Also tells Redis Cluster the slot
-- KEYS[2]  cg:{p}:h:<worker>    hash: hold id -> record; `epoch` is the newest connection of that worker, `seq` the number of
--                               the last call that took holds
-- ARGV[1]  JSON: [epoch, beat, accounts, shapes, calls, settles, seq_known, seq]
--            beat     the generation (join.lua) that the worker knows: say that it lives; 0: not now
--            account  [id, version, [[kind, start_ms, end_ms, hard_limit], …], rolling (1, 0 or absent), tier or absent]
--            tier     [kind, start_ms, end_ms, free units, num, den]: a unit's price is num / den microcents
--            shape    [policy name, [[algorithm, limit, window_ms, burst, key prefix], …], [weight in each limit, …],
--                     tells (1, 0 or absent), key life in ms or absent]; tells: calls that pass hear what the limits have left
--            call     [account index or 0, amount, shape index, weights, [key value, …], [hold id or "", …],
--                     units or absent, idempotency key's digest or absent]: one or several calls alike; weights 0: those of
--                     the shape; key values 0: the account's id for each limit
--            settles  0 or [seeds, usages, adjusts, removes, tiers or absent], see settle.lua
--            seq_known  the highest seq that the worker knows to be written    seq  this call's
-- ARGV[2]  tests only: the time in ms instead of Redis' own
-- Reply    [now_ms, outcome of each call, …], outcomes as in admit.lua; or an error that begins with FENCED (a newer
--          connection of this worker exists) or LOST (data are missing or old: join again); then nothing was changed
--
-- Amounts stay below 2^53: exact in Lua's doubles, in redis.call's arguments (%.17g) and in cmsgpack's integers.
-- They are never put into a string by `..` or tostring, which round to 14 digits.

local input = cjson.decode(ARGV[1])
local prefix = string.sub(KEYS[1], 1, -#'workers' - 1)
local worker = string.sub(KEYS[2], #prefix + #'h:' + 1)

local now
local ttl_extra = 0
if ARGV[2] then
  now = tonumber(ARGV[2])
  ttl_extra = 3600000  -- Redis expires keys by its own clock, which a test's may fall behind
else
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Lua's C stack bounds how many values unpack may push (8000); an even number keeps field-value pairs together.
local ARGUMENTS_MAX = 1000

local function call_in_chunks(command, key, arguments)
  for first = 1, #arguments, ARGUMENTS_MAX do
    redis.call(command, key, unpack(arguments, first, math.min(first + ARGUMENTS_MAX - 1, #arguments)))
  end
end
