-- A script of several files. gateway/redis_store.py puts them together: this one, what every call begins with, the modules as
-- functions in `files`, and what is done with them. A module is a file that returns what it gives to others; it runs when
-- it is first used. For Redis runs all of a script's text at every call, and most calls need few of its functions: made
-- anyway, 60 of them cost 14 µs a call. Most of that is that Lua finds a local which a function captures by walking along
-- all that are captured already. So locals that files share are few; a module's own are found at once.
local loaded = {}
local files

local function use(name)
  local module = loaded[name]
  if not module then
    module = files[name]()
    loaded[name] = module
  end
  return module
end
