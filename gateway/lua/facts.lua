-- The facts of an account have changed: calls that know an older version must load them again. Only ever raises.
-- KEYS[1] the account's hash   ARGV[1] the version
-- Windows stay: what was used in them does not depend on what is allowed. An account that is not here needs no version
-- either: it will be seeded, with the facts of that moment.
local present = tonumber(redis.call('HGET', KEYS[1], 'v'))
if present and present < tonumber(ARGV[1]) then redis.call('HSET', KEYS[1], 'v', ARGV[1]) end
return 1
