-- Finds what workers that have fallen silent left behind.
-- KEYS[1] cg:{p}:workers   ARGV[1] how long is silent, ms   ARGV[2] worker id, or '' to find some   ARGV[3] HSCAN cursor
-- ARGV[4] page size        ARGV[5] tests only: the time in ms
-- Without a worker: [worker id, …]. With one: [cursor, hold id, account id, amount, admitted_ms, policy name, terms, …]; the slots of
-- these calls are freed here and now, their money stays held until the ledger has it. When nothing is left the worker
-- is forgotten. Run by two sweepers at once each step may happen twice, to the same end.
now = tonumber(ARGV[5]) or now
local silent_since = now - tonumber(ARGV[1])

-- Their JSON. By itself cjson rounds a number to 14 digits, and the end of a period that never ends has 15.
local function terms_text(terms)
  local parts = {}
  for i, part in ipairs(terms) do
    parts[i] = type(part) == 'number' and string.format('%.0f', part) or cjson.encode(part)
  end
  return '[' .. table.concat(parts, ',') .. ']'
end

if ARGV[2] == '' then
  return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', silent_since, 'LIMIT', 0, 100)
end

local score = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[2]))
local book = prefix .. 'h:' .. ARGV[2]
if not score or score > silent_since then return {'0'} end

local page = redis.call('HSCAN', book, ARGV[3], 'COUNT', ARGV[4])
local reply = {page[1]}
local fields = page[2]
local is_large = use('members').is_large(book)
for i = 1, #fields, 2 do
  local id = fields[i]
  if id ~= 'epoch' and id ~= 'seq' and string.byte(fields[i + 1]) > GROUPED then
    -- Of an earlier layout, by a worker that ran beside later ones: nobody can read it, and it must not stand in the way.
    redis.call('HDEL', book, id)
  elseif id ~= 'epoch' and id ~= 'seq' and string.byte(fields[i + 1]) == GROUPED then
    local groups = use('groups')
    local amount, admitted, account_id, policy, mask, ids = groups.unpacked(fields[i + 1])
    if is_large then use('members').know(ARGV[2], id, fields[i + 1]) end  -- its holds are about to be asked for by their ids
    for _, member in ipairs(groups.members(mask, ids)) do
      for _, part in ipairs({member, account_id, amount, admitted, policy, ''}) do reply[#reply + 1] = part end
    end
  elseif id ~= 'epoch' and id ~= 'seq' then
    local amount, admitted, account_id, policy, slots, terms = hold_unpacked(fields[i + 1])
    if slots then
      hold_release_slots(id, fields[i + 1])
      redis.call('HSET', book, id, hold_packed(amount, admitted, account_id, policy, nil, terms))
    end
    for _, part in ipairs({id, account_id, amount, admitted, policy, terms and terms_text(terms) or ''}) do
      reply[#reply + 1] = part
    end
  end
end
if is_large and page[1] == '0' then use('members').know_all(ARGV[2], redis.call('HGET', book, 'seq') or '') end
if #reply == 1 and page[1] == '0' and ARGV[3] == '0' then
  redis.call('DEL', book, use('members').key_of(ARGV[2]))
  redis.call('ZREM', KEYS[1], ARGV[2])
  -- Should it wake after all, it finds its book gone for this reason and not because Redis lost data (join.lua).
  redis.call('SET', prefix .. 'swept:' .. ARGV[2], 1, 'PX', 86400000)
end
return reply
