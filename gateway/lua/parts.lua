-- How files become one script (gateway/redis_store.py): those that every call needs come one after the other, and all the
-- others are parts, which run when they are asked for. Redis runs all of a script's text at every call, and what a call
-- costs there is above all what it allocates: a function or a table is 0.1 to 0.3 µs, and a local that functions capture is
-- one more, found by a walk along all that are captured already. Written as one text of 60 functions these files took 14 µs
-- before doing anything. So a part makes only what it needs, what is done in one place is no function, and the constants (local
-- NAME = …) are put in place of their names when the files are read.
local run        -- (name, given): runs a part, returns what it does
local used = {}

-- A part that gives functions to others: it runs once.
local function use(name)
  local given = used[name]
  if not given then
    given = run(name)
    used[name] = given
  end
  return given
end
