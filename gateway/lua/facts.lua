-- The facts of an account have changed: calls that know an older version must load them again. Only ever raises.
-- KEYS[1] cg:{p}:workers   ARGV[1] account id   ARGV[2] the version
-- Windows stay: what was used in them does not depend on what is allowed. An account that is not here gets its version all
-- the same: somebody may be about to seed it with facts from before the change.
local account, version = account_of(ARGV[1]), tonumber(ARGV[2])
if account.version < version then
  account.version = version
  account_touch(account)
end
accounts_store()
return 1
