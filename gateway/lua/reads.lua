-- Strings that a batch needs are read together: who will ask for one says so before (want), and whoever asks first (text_of)
-- reads all that are wanted by then. Most batches are one MGET.
-- Lua's C stack bounds how many values unpack may push (8000); an even number keeps field-value pairs together.
local ARGUMENTS_MAX = 1000

local texts, wanted = {}, {}

local function want(key)
  if texts[key] == nil then
    texts[key] = false
    wanted[#wanted + 1] = key
  end
end

-- What stands under the key, or false; also where something else than a string does.
local function text_of(key)
  want(key)
  if wanted[1] then
    for first = 1, #wanted, ARGUMENTS_MAX do
      local last = math.min(first + ARGUMENTS_MAX - 1, #wanted)
      local found = redis.call('MGET', unpack(wanted, first, last))
      for i = first, last do texts[wanted[i]] = found[i - first + 1] end
    end
    wanted = {}
  end
  return texts[key]
end
