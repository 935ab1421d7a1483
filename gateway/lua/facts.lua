-- The facts of an account have changed: calls that know an older version must load them again. Only ever raises.
-- KEYS[1] the account's hash   ARGV[1] the version   ARGV[2] how long a hash made here is kept, in ms
-- Windows stay: what was used in them does not depend on what is allowed. An account that is not here gets its version all
-- the same: somebody may be about to seed it with facts from before the change.
local present = tonumber(redis.call('HGET', KEYS[1], 'v'))
if not present then
  redis.call('HSET', KEYS[1], 'v', ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
elseif present < tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[1], 'v', ARGV[1])
end
return 1
