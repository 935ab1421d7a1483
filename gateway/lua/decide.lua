-- Decides calls in the order they came, all or nothing each: facts, then budgets in the order sent, then rate limits in the
-- policy's order. Only a call that passes all of them takes from any of them. Outcomes:
--   0                            admitted
--   n                            so many calls of a group admitted
--   [0, [left, ms, …]]           the same under a policy that tells what its limits have left, left and ms of each
--   [1, window index, taken, need or absent]   a budget is spent: used + held is `taken`; `need` under a free tier, where the
--                                call would have had to hold that and not its amount
--   [2, limit index, wait_ms]    too many calls
--   [3, version]  STALE                   the facts have changed since: load them again
--   [4]  COLD                    the account, or the window that now is, is not known here: seed it
--   [5]  WINDOW                  `now` is outside a window that was sent: work them out again

local ADMITTED, BUDGET, RATE, STALE, COLD, OUTSIDE = 0, 1, 2, 3, 4, 5

local states = given  -- of the limits of each call, as in its policy, one call after the other
local entries, shapes, calls, ids, windows_of = input[3], input[4], input[5], input[10], input[9]
local rooms, tier_windows = {}, {}

-- nil where the caller knows the account as it is, else the outcome that says what to do first. Then rooms[entry] is how much
-- may be held at most: what the window with the least of it has left; and tier_windows[entry] the window of its free tier.
-- Worked out once a batch for each account and version, while all is well: only the version can change within a batch.
local function entry_outcome(entry, account, version, windows, rolling, tier)
  if account.version < 0 then return {COLD} end
  if account.version > version then return {STALE, account.version} end
  if rooms[entry] and account.version == version then return nil end
  local room = math.huge
  for _, window in ipairs(windows) do
    local kind, start = window[1], window[2]
    if now < start or now >= window[3] then return {OUTSIDE} end
    local at = window_place(account, kind)
    if not at then return {COLD} end
    if account[at + START] ~= start then
      if rolling == 0 or account[at + START] > start then return {COLD} end
      use('rolled').roll_over(account, at, start)
    elseif account[at + ROLLED] == 1 and rolling == 0 then
      return {COLD}
    end
    room = math.min(room, window[4] - account[at + USED])
  end
  if account.version < version then
    account.version = version
    account_touch(account)
  end
  if tier ~= 0 then
    local in_the_way
    in_the_way, tier_windows[entry] = use('tiers').window_for(account, tier, rolling == 1)
    if in_the_way then return {in_the_way} end
  end
  rooms[entry] = room
end

local function take_from_limit(state, row, weight)
  if state.stage ~= TAKEN then
    state.stage = TAKEN
    limits_taken[#limits_taken + 1] = state
    limits_taken[#limits_taken + 1] = row
  end
  state.taken = state.taken + weight
end

local reply = {now}
local new = book_of(worker).new
local ids_before, states_before = 0, 0

for at = 1, #calls, CALL_SIZE do  -- like calls that came one after another; what they share is looked up once
  local entry, amount, shape_index, weights, _, count, units, key = unpack(calls, at, at + CALL_SIZE - 1)
  local is_group = count < 0
  local group_ids, passed = ids[ids_before + 1], 0
  if is_group then count = -count end
  local shape = shapes[shape_index]
  local rows, tells, packed = shape[2], shape[4] == 1, nil
  if weights == 0 then weights = shape[3] end
  local id, version, windows, rolling, tier_row = '', 0, 0, 0, 0
  local account, not_yet, tier, tiers, held, room
  if entry > 0 then
    id, version, windows, rolling, tier_row = unpack(entries, ENTRY_SIZE * (entry - 1) + 1, ENTRY_SIZE * entry)
    windows = windows_of[windows]
    account = account_of(id)
    not_yet = entry_outcome(entry, account, version, windows, rolling, tier_row)
    tier, held, room = tier_windows[entry], account.held, rooms[entry]
    tiers = tier and use('tiers')
  end
  if not not_yet then
    for i, row in ipairs(rows) do
      local state = states[states_before + i]
      if state.stage == NEW then
        state.stage = LOADED
        row.limiter.load(state, row)
      end
    end
  end

  if is_group and not not_yet and amount * count <= room - held then
    local all_pass = true
    for i, row in ipairs(rows) do
      if all_pass and row.limiter.wait(states[states_before + i], row, weights[i] * count) > 0 then all_pass = false end
    end
    if all_pass then
      for i, row in ipairs(rows) do take_from_limit(states[states_before + i], row, weights[i] * count) end
      held = held + amount * count
      reply[#reply + 1] = count
      passed, count = count, 0
    end
  end
  local need = amount
  for call = ids_before + 1, ids_before + count do
    local hold_id, outcome = is_group and group_ids or ids[call], not_yet
    if not outcome and tier then need = tiers.need_of(tier, units) end
    if not outcome and account and need > 0 and need > room - held then
      for i, window in ipairs(windows) do
        local used = account[window_place(account, window[1]) + USED]
        if not outcome and need > window[4] - used - held then outcome = {BUDGET, i - 1, used + held, tier and need} end
      end
    end
    if not outcome then
      for i, row in ipairs(rows) do
        local state = states[states_before + i]
        local wait = row.limiter.wait(state, row, weights[i])
        if wait > 0 then
          outcome = {RATE, i - 1, wait}
          break
        end
      end
    end
    if not outcome then
      outcome = ADMITTED
      for i, row in ipairs(rows) do
        local state = states[states_before + i]
        take_from_limit(state, row, weights[i])
        if row.limiter.enter then row.limiter.enter(state, hold_id) end
      end
      if tells then
        local left = {}
        for i, row in ipairs(rows) do
          local state = states[states_before + i]
          left[2 * i - 1], left[2 * i] = row.limiter.left(state, row)
        end
        outcome = {ADMITTED, left}
      end
      if hold_id ~= '' then
        if account then held = held + need end
        if tier then tiers.take(tier, units, need) end
        passed = passed + 1
        if not packed and not is_group then
          -- The concurrency limits in which it counts until it has ended, and what it must remember for the ledger: nearly none.
          local slots, terms
          for i, row in ipairs(rows) do
            if row.limiter.enter then
              slots = slots or {}
              slots[#slots + 1] = string.sub(states[states_before + i].key, #prefix + 1)
            end
          end
          if tier_row ~= 0 then
            local kind, start, ends, free = unpack(tier_row)
            terms = {kind, start, ends, units, free, key ~= 0 and key, key ~= 0 and shape[5]}
          elseif key ~= 0 then
            terms = {false, false, false, false, false, key, shape[5]}
          end
          packed = hold_packed(amount, now, id, shape[1], slots, terms)
        end
        if not is_group then
          new[#new + 1] = hold_id
          new[#new + 1] = packed
        end
      end
    end
    reply[#reply + 1] = outcome
  end
  if is_group and passed > 0 then  -- the first of them: what one does not find room for the next does not either
    new[#new + 1] = 'g' .. string.match(group_ids, '[^,]+')
    new[#new + 1] = use('groups').packed(amount, now, id, shape[1], 2 ^ passed - 1, group_ids)
  end
  ids_before, states_before = ids_before + (is_group and 1 or count), states_before + #rows
  if account and not not_yet and held ~= account.held then account_hold(account, held - account.held) end
  if tier and not not_yet then account_touch(account) end
end
return reply
