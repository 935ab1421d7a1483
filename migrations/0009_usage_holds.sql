-- Admission by Postgres, for while Redis is away or does not know yet what it lost: what calls under way hold, and which
-- workers live. Both tables can be rebuilt by the workers, so they are not logged.
BEGIN;

CREATE UNLOGGED TABLE usage_holds (
    id                uuid PRIMARY KEY,
    account_id        text COLLATE "C" NOT NULL,
    amount_microcents bigint NOT NULL CHECK (amount_microcents >= 0),
    admitted_at       timestamptz NOT NULL,
    policy            text NOT NULL,
    worker_id         text COLLATE "C" NOT NULL
);

CREATE INDEX usage_holds_account ON usage_holds (account_id) INCLUDE (amount_microcents);
CREATE INDEX usage_holds_worker ON usage_holds (worker_id);

CREATE UNLOGGED TABLE gateway_workers (
    worker_id   text COLLATE "C" PRIMARY KEY,
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    in_postgres boolean NOT NULL DEFAULT false  -- all that its calls hold is in usage_holds
);

-- Decides calls in the order given. The account's total is locked as in 0006_usage_functions.sql, totals in order of
-- account: whoever posts an event changes its counters and takes away its hold in one transaction that has this lock, so what
-- is read here after the lock has each call in exactly one of the two.
--
-- An entry is an account at a facts version; window_entries says which entry a window belongs to, call_entries whose a
-- call is (places in the arrays). Outcomes as in lua/admit.lua: 0, or 1 BUDGET with the window's place within its entry
-- and what is taken, or 3 STALE with the version.
CREATE OR REPLACE FUNCTION castgate_admit(
    worker         text,
    released       uuid[],      -- holds that are over
    entry_accounts text[],
    entry_versions bigint[],
    window_entries integer[],   -- ascending
    periods        text[],
    time_zones     text[],
    week_starts    smallint[],
    start_ms       bigint[],
    end_ms         bigint[],
    hard_limits    bigint[],
    call_entries   integer[],
    hold_ids       uuid[],
    amounts        bigint[],
    policies       text[],
    only_asks      boolean[],   -- decide, but take nothing
    OUT outcomes   smallint[],
    OUT places     integer[],
    OUT details    bigint[],
    OUT now_ms     bigint
)
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '40ms'
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    versions bigint[];
    held     bigint[];
    used     bigint[];
    firsts   integer[];
    owner    integer;  -- the first entry of the same account: what is held is the account's, whatever version is known
    entry    integer;
    place    integer;
    taken    bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'calls are admitted at READ COMMITTED, not %', current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    -- What is lost with the server is what the workers bring back.
    PERFORM set_config('synchronous_commit', 'off', true);

    IF cardinality(released) > 0 THEN
        DELETE FROM usage_holds WHERE id = ANY(released);
    END IF;

    INSERT INTO usage_counters (account_id, window_end, period, time_zone, week_start, window_start)
    SELECT DISTINCT account_id, timestamptz '9999-12-31 00:00:00+00', 'total', 'UTC', 1, timestamptz 'epoch'
    FROM unnest(entry_accounts) AS entry(account_id)
    ORDER BY 1
    ON CONFLICT (account_id, window_end, period, time_zone, week_start) DO UPDATE
        SET used_microcents = usage_counters.used_microcents
        WHERE false;

    used := castgate_seed_usage(
        (SELECT array_agg(entry_accounts[asked.entry] ORDER BY asked.place)
         FROM unnest(window_entries) WITH ORDINALITY AS asked(entry, place)),
        periods, time_zones, week_starts, start_ms, end_ms
    );
    SELECT array_agg(coalesce(billing.facts_version, 0) ORDER BY asked.place),
           array_agg(coalesce((SELECT sum(hold.amount_microcents) FROM usage_holds AS hold
                               WHERE hold.account_id = asked.account_id), 0)::bigint ORDER BY asked.place)
    INTO versions, held
    FROM unnest(entry_accounts) WITH ORDINALITY AS asked(account_id, place)
    LEFT JOIN LATERAL (
        SELECT facts_version FROM billing_accounts WHERE account_id = asked.account_id LIMIT 1
    ) AS billing ON true;

    FOR window_place IN 1 .. coalesce(cardinality(window_entries), 0) LOOP
        IF firsts[window_entries[window_place]] IS NULL THEN
            firsts[window_entries[window_place]] := window_place;
        END IF;
    END LOOP;

    FOR at IN 1 .. cardinality(call_entries) LOOP
        entry := call_entries[at];
        outcomes[at] := 0;
        places[at] := 0;
        details[at] := 0;
        IF versions[entry] > entry_versions[entry] THEN
            outcomes[at] := 3;
            details[at] := versions[entry];
            CONTINUE;
        END IF;
        owner := array_position(entry_accounts, entry_accounts[entry]);
        place := firsts[entry];
        WHILE window_entries[place] = entry LOOP
            taken := used[place] + held[owner];
            IF taken + amounts[at] > hard_limits[place] THEN
                outcomes[at] := 1;
                places[at] := place - firsts[entry];
                details[at] := taken;
                EXIT;
            END IF;
            place := place + 1;
        END LOOP;
        IF outcomes[at] = 0 AND NOT only_asks[at] THEN
            held[owner] := held[owner] + amounts[at];
        END IF;
    END LOOP;

    now_ms := (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
    INSERT INTO usage_holds (id, account_id, amount_microcents, admitted_at, policy, worker_id)
    SELECT asked.id, entry_accounts[asked.entry], asked.amount,
           timestamptz 'epoch' + now_ms * interval '1 millisecond', asked.policy, worker
    FROM unnest(call_entries, hold_ids, amounts, policies, only_asks, outcomes)
         AS asked(entry, id, amount, policy, only_asks, outcome)
    WHERE asked.outcome = 0 AND NOT asked.only_asks
    ON CONFLICT (id) DO NOTHING;
END
$$;

COMMIT;
