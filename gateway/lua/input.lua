-- One script call decides a whole batch: admit.lua says in which order, parts.lua how these files become one script.
-- State is read at most once a batch and written once at its end, so what a batch costs grows with the accounts and
-- limiters it touches, not with its calls; and a script that fails on its first write (out of memory, read-only replica)
-- has changed no money.
--
-- KEYS[1]  cg:{p}:workers       zset: worker id -> when it last spoke, Redis ms. Also tells Redis Cluster the slot
-- KEYS[2]  cg:{p}:h:<worker>    hash: hold id -> hold; `epoch` is the newest connection of that worker, `seq` the number of
--                               the last call that took holds
-- ARGV[1]  JSON: [epoch, beat, accounts, shapes, calls, settles, seq_known, seq, windows, ids]
--            beat      the generation (join.lua) that the worker knows: say that it lives; 0: not now
--            accounts  [id, version, windows index, rolling (1 or 0), tier or 0, id, …]
--            windows   [[[kind, start_ms, end_ms, hard_limit], …], …]: accounts with the same limits have the same
--            tier      [kind, start_ms, end_ms, free units, num, den]: a unit's price is num / den microcents
--            shapes    [[policy name, [[algorithm, limit, window_ms, burst, key prefix], …], [weight in each limit, …],
--                      tells (1, 0 or absent), key life in ms or absent], …]; tells: calls that pass hear what the limits have left
--            calls     [account index or 0, amount, shape index, weights, key values, count, units or 0, idempotency key's digest or
--                      0, account index, …]: so many calls alike, held as one group (groups.lua) where count is below 0; weights 0: those of the shape; key values 0: the account's id
--                      for each limit
--            ids       [hold id or "", …] of all calls; of a group one text with commas
--            settles   0 or [seeds, usages, adjusts, removes, tiers or 0, groups or absent], see settle.lua
--            seq_known  the highest seq that the worker knows to be written    seq  this call's
--          What there is much of is in flat lists: a table for each account and call would be a third of their cost.
-- ARGV[2]  tests only: the time in ms instead of Redis' own
-- Reply    [now_ms, outcome of each call, …], outcomes as in decide.lua; or an error that begins with FENCED (a newer
--          connection of this worker exists) or LOST (data are missing or old: join again); then nothing was changed
--
-- Amounts stay below 2^53: exact in Lua's doubles, in struct's, in redis.call's arguments (%.17g) and in cmsgpack's integers.
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

local ENTRY_SIZE, CALL_SIZE = 5, 8  -- of accounts and calls
