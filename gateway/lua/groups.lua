-- Like calls that one batch admits together are one entry of a book: what they share is written once, and ended once for all that
-- end together. Its name is 'g' and the id of the first; behind HOLD come the mask of the calls that still hold (bit i: the call
-- at i, from 0) and the ids of all, with commas between them. Only calls without slots and terms, and so few that a mask of them is exact
-- in the 32 bits of `bit` (GROUP_MAX in gateway/admission_batch.py). A hold that is asked for by its id leaves its group first (members.lua).
local MASK = '<I'

local groups = {}

function groups.packed(amount, admitted, account_id, policy, mask, ids)
  return struct.pack(HOLD, GROUPED, amount, admitted, #account_id, account_id, #policy, policy) .. struct.pack(MASK, mask) .. ids
end

function groups.unpacked(text)
  local _, amount, admitted, account_id, policy, place = struct.unpack(HOLD, text)
  local mask, ids_place = struct.unpack(MASK, text, place)
  return amount, admitted, account_id, policy, mask, string.sub(text, ids_place)
end

-- How many calls a mask is of: the sum of its bits, two, four and eight at a time.
function groups.count(mask)
  mask = mask - bit.band(bit.rshift(mask, 1), 0x55555555)
  mask = bit.band(mask, 0x33333333) + bit.band(bit.rshift(mask, 2), 0x33333333)
  return bit.band(mask + bit.rshift(mask, 4), 0x0f0f0f0f) % 255
end

-- How many calls of a group still hold.
function groups.size(text)
  local _, _, _, _, _, place = struct.unpack(HOLD, text)
  return groups.count((struct.unpack(MASK, text, place)))
end

-- The ids of the calls that still hold.
function groups.members(mask, ids)
  local found = {}
  for id in string.gmatch(ids, '[^,]+') do
    if mask % 2 == 1 then found[#found + 1] = id end
    mask = math.floor(mask / 2)
  end
  return found
end

return groups
