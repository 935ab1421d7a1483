-- Holds: hash cg:{p}:h:<worker>, hold id (or name of a group, see groups.lua) -> amount, admitted_ms, account id and policy name as HOLD says; behind them, where the
-- first byte says so, cmsgpack of {slots or false, terms or false}. Without a free tier in its terms (tiers.lua) a call's amount
-- is part of its account's `held`. `slots` are the concurrency limits (keys without the prefix) in which the call counts until
-- it has ended. Who reads other workers' books passes over what begins otherwise: that is of an earlier layout (join.lua).
local HOLD = '<BddIc0Ic0'
local ALONE, WITH_MORE, GROUPED = 0, 1, 2

-- Of like calls admitted together it is the same text.
local function hold_packed(amount, admitted, account_id, policy, slots, terms)
  if not (slots or terms) then return struct.pack(HOLD, ALONE, amount, admitted, #account_id, account_id, #policy, policy) end
  return struct.pack(HOLD, WITH_MORE, amount, admitted, #account_id, account_id, #policy, policy)
    .. cmsgpack.pack({slots or false, terms or false})
end

-- The same values, nil where there are no slots or terms; of a group what its calls have in common.
local function hold_unpacked(text)
  local more, amount, admitted, account_id, policy, place = struct.unpack(HOLD, text)
  if more ~= WITH_MORE then return amount, admitted, account_id, policy end
  local slots, terms = unpack(cmsgpack.unpack(string.sub(text, place)))
  return amount, admitted, account_id, policy, slots or nil, terms or nil
end

-- The call counts in its concurrency limits no more.
local function hold_release_slots(id, text)
  if string.byte(text) ~= WITH_MORE then return end
  local _, _, _, _, slots = hold_unpacked(text)
  for _, key in ipairs(slots or {}) do redis.call('SREM', prefix .. key, id) end
end
