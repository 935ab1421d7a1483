-- What operators did by the console, and to whom: who, when, what, before and after. A change and its entry are one
-- transaction. Entries of questions (explained) are forgotten after 90 days, as scripts may ask many; changes are kept.
BEGIN;

CREATE TABLE audit_entries (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    account_id text COLLATE "C",  -- NULL: of no one account
    token      text NOT NULL,     -- the name of the token that was shown, never the token; none: nobody was asked
    address    text NOT NULL,     -- where the request came from
    action     text NOT NULL,
    before     jsonb,             -- NULL: there was nothing
    after      jsonb              -- NULL: there is nothing, or it did not come to an end
);

CREATE INDEX audit_entries_account ON audit_entries (account_id, id);
CREATE INDEX audit_entries_questions ON audit_entries (at) WHERE action = 'explained';

COMMIT;
