-- Windows that began while Postgres was away.
return {
  -- Nothing of such a window can have reached the ledger, all of it is still held, so it starts at 0. The ledger will not
  -- count for it before it is seeded; until then removed holds are added here.
  roll_over = function(account, at, start)
    account[at + START], account[at + USED], account[at + ROLLED] = start, 0, 1
    account.is_rolled = true
    account_touch(account)
  end,

  -- A hold was removed that is in the ledger.
  posted = function(account, amount, admitted)
    for at = 1, #account, SIZE do
      if account[at + ROLLED] == 1 and admitted >= account[at + START] then
        account[at + USED] = account[at + USED] + amount
        account_touch(account)
      end
    end
  end,
}
