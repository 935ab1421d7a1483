-- What the ledger has of free tiers and repeats is lost; what calls cost stays.
BEGIN;

DROP FUNCTION IF EXISTS castgate_record_usage(
    uuid[], text[], text[], bigint[], bigint[], smallint[], text[], text[], text[], text, text[], bigint[],
    text[], bigint[], bigint[], bigint[], bigint[], text[], bigint[]
);
DROP FUNCTION IF EXISTS castgate_admit(
    text, uuid[], text[], bigint[], integer[], text[], text[], smallint[], bigint[], bigint[], bigint[], integer[], uuid[],
    bigint[], text[], boolean[], text[], bigint[], bigint[], bigint[], bigint[], text[], bigint[]
);
DROP FUNCTION IF EXISTS castgate_repair_units(text[]);
DROP FUNCTION IF EXISTS castgate_held(text);
DROP FUNCTION IF EXISTS castgate_reserves(text);
DROP FUNCTION IF EXISTS castgate_reserve(bigint, bigint, bigint, bigint, bigint);
DROP FUNCTION IF EXISTS castgate_settle_terms(
    uuid[], uuid[], text[], text[], bigint[], bigint[], text[], text[], bigint[], bigint[], bigint[], bigint[], text[], bigint[]
);
DROP FUNCTION IF EXISTS castgate_used_units(text, text, text, timestamptz, timestamptz, uuid[]);
DROP FUNCTION IF EXISTS castgate_charge_casts(text, text[], bigint[], text);
ALTER TABLE IF EXISTS usage_holds
    DROP COLUMN IF EXISTS free_kind,
    DROP COLUMN IF EXISTS free_start_ms,
    DROP COLUMN IF EXISTS free_end_ms,
    DROP COLUMN IF EXISTS units,
    DROP COLUMN IF EXISTS free_limit,
    DROP COLUMN IF EXISTS key,
    DROP COLUMN IF EXISTS key_life_ms;
DROP TABLE IF EXISTS billed_keys;
DROP TABLE IF EXISTS usage_units;
CREATE OR REPLACE FUNCTION castgate_complete_events(
    event_ids         uuid[],
    upstream_statuses smallint[],
    cast_ids          text[],
    request_ids       text[]
) RETURNS TABLE (cast_id text, cost_microcents bigint)
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '2s'
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH told AS (
        SELECT * FROM unnest(event_ids, upstream_statuses, cast_ids, request_ids)
            AS event(id, upstream_status, cast_id, request_id)
    ), locked AS (
        -- In order of id, as castgate_record_usage takes them.
        SELECT event.id FROM usage_events AS event
        WHERE event.id IN (SELECT id FROM told) AND event.outcome = 'expired'
        ORDER BY event.id FOR UPDATE
    ), completed AS (
        UPDATE usage_events AS event
        SET outcome = 'posted', upstream_status = told.upstream_status, cast_id = told.cast_id,
            request_id = told.request_id
        FROM told JOIN locked USING (id)
        WHERE event.id = told.id
    )
    SELECT told.cast_id, event.cost_microcents FROM told JOIN usage_events AS event USING (id)
    WHERE told.cast_id IS NOT NULL;
END
$$;

ALTER TABLE IF EXISTS usage_events
    DROP COLUMN IF EXISTS units,
    DROP COLUMN IF EXISTS free_units,
    DROP COLUMN IF EXISTS repeat_of;

-- Writes events once (by id), adds their costs to the account's counters, and to casts.cost_cents by the statement of
-- the operator ($1 text[]: cast ids, $2 numeric[]: cents). Late casts are charges that an earlier call could not write
-- because casts was locked. Gives the absolute use of every counter of the accounts named that is open at the oldest
-- event or later, also for events that were there before: who replays must learn the same.
CREATE OR REPLACE FUNCTION castgate_record_usage(
    event_ids          uuid[],
    account_ids        text[],
    policies           text[],
    occurred_ms        bigint[],
    costs_microcents   bigint[],
    upstream_statuses  smallint[],
    outcomes           text[],
    cast_ids           text[],
    request_ids        text[],
    cast_cost_sql      text,       -- NULL: casts are not charged
    late_cast_ids      text[],
    late_microcents    bigint[],
    OUT recorded       bigint,     -- events that were new
    OUT casts_charged  bigint,
    OUT casts_missing  bigint,     -- casts that the statement did not find
    OUT casts_refused  bigint,     -- casts that can never be charged: a bad id, no such table, not allowed
    OUT casts_error    text,       -- the last error with casts: SQLSTATE and text
    OUT casts_late     text[],     -- casts to try again, with
    OUT casts_late_microcents bigint[],
    OUT usage_accounts text[],     -- the counters, as columns
    OUT usage_kinds    text[],
    OUT usage_start_ms bigint[],
    OUT usage_end_ms   bigint[],
    OUT usage_microcents bigint[]
)
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '2s'
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    new_accounts text[];
    new_times    timestamptz[];
    new_costs    bigint[];
    new_calls    bigint[];
    cast_cents   numeric[];
    oldest       timestamptz;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'usage is written at READ COMMITTED, not %', current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    casts_charged := 0;
    casts_missing := 0;
    casts_refused := 0;

    -- 1. The events. Sorted: two writers that replay the same events wait for each other in one direction only.
    WITH inserted AS (
        INSERT INTO usage_events (id, account_id, policy, occurred_at, cost_microcents, upstream_status, outcome,
                                  cast_id, request_id)
        SELECT event.id, event.account_id, event.policy,
               timestamptz 'epoch' + event.occurred_ms * interval '1 millisecond',
               event.cost_microcents, event.upstream_status, event.outcome, event.cast_id, event.request_id
        FROM unnest(event_ids, account_ids, policies, occurred_ms, costs_microcents, upstream_statuses, outcomes,
                    cast_ids, request_ids)
             AS event(id, account_id, policy, occurred_ms, cost_microcents, upstream_status, outcome,
                      cast_id, request_id)
        ORDER BY event.id
        ON CONFLICT (id) DO NOTHING
        RETURNING usage_events.account_id, usage_events.occurred_at, usage_events.cost_microcents,
                  usage_events.cast_id
    ),
    -- A call's time is its admission's, which many calls share: what follows costs by such groups and not by calls.
    grouped AS (
        SELECT inserted.account_id, inserted.occurred_at, sum(inserted.cost_microcents)::bigint AS cost, count(*) AS calls
        FROM inserted
        GROUP BY inserted.account_id, inserted.occurred_at
    )
    SELECT coalesce(sum(grouped.calls), 0),
           array_agg(grouped.account_id), array_agg(grouped.occurred_at), array_agg(grouped.cost),
           array_agg(grouped.calls),
           (SELECT array_agg(inserted.cast_id) FROM inserted WHERE inserted.cast_id IS NOT NULL),
           (SELECT array_agg(inserted.cost_microcents) FROM inserted WHERE inserted.cast_id IS NOT NULL)
    INTO recorded, new_accounts, new_times, new_costs, new_calls, casts_late, casts_late_microcents
    FROM grouped;

    -- 2. The casts, before any account is locked: Phase 1 may hold their rows.
    casts_late := casts_late || late_cast_ids;
    casts_late_microcents := casts_late_microcents || late_microcents;
    IF cast_cost_sql IS NOT NULL AND cardinality(casts_late) > 0 THEN
        SELECT array_agg(cost / 1000000.0 ORDER BY place) INTO cast_cents
        FROM unnest(casts_late_microcents) WITH ORDINALITY AS late(cost, place);
        PERFORM set_config('lock_timeout', '250ms', true);
        BEGIN
            EXECUTE cast_cost_sql USING casts_late, cast_cents;
            GET DIAGNOSTICS casts_charged = ROW_COUNT;
            casts_missing := greatest(cardinality(casts_late) - casts_charged, 0);
            casts_late := NULL;
        EXCEPTION
            WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
                casts_error := SQLSTATE || ' ' || SQLERRM;
            WHEN data_exception OR integrity_constraint_violation THEN
                -- One bad id spoils the statement, not its neighbours.
                FOR place IN 1 .. cardinality(casts_late) LOOP
                    DECLARE
                        charged bigint;
                    BEGIN
                        EXECUTE cast_cost_sql USING casts_late[place:place], cast_cents[place:place];
                        GET DIAGNOSTICS charged = ROW_COUNT;
                        casts_charged := casts_charged + charged;
                        casts_missing := casts_missing + greatest(1 - charged, 0);
                    EXCEPTION WHEN OTHERS THEN
                        casts_refused := casts_refused + 1;
                        casts_error := SQLSTATE || ' ' || SQLERRM;
                    END;
                END LOOP;
                casts_late := NULL;
            WHEN OTHERS THEN
                casts_refused := cardinality(casts_late);
                casts_error := SQLSTATE || ' ' || SQLERRM;
                casts_late := NULL;
        END;
        PERFORM set_config('lock_timeout', '2s', true);
    ELSE
        casts_late := NULL;
    END IF;
    IF casts_late IS NULL THEN
        casts_late_microcents := NULL;
    END IF;

    IF recorded > 0 THEN
        -- 3. The totals: from here on these accounts are ours until the commit.
        INSERT INTO usage_counters AS counter (account_id, window_end, period, time_zone, week_start, window_start,
                                               used_microcents, calls)
        SELECT event.account_id, timestamptz '9999-12-31 00:00:00+00', 'total', 'UTC', 1, timestamptz 'epoch',
               sum(event.cost), sum(event.calls)
        FROM unnest(new_accounts, new_costs, new_calls) AS event(account_id, cost, calls)
        GROUP BY event.account_id
        ORDER BY event.account_id
        ON CONFLICT (account_id, window_end, period, time_zone, week_start) DO UPDATE
            SET used_microcents = counter.used_microcents + excluded.used_microcents,
                calls = counter.calls + excluded.calls,
                updated_at = now();

        -- 4. Every other counter that holds the event's time, in a snapshot from after the lock: a counter that
        --    somebody seeded meanwhile is here, and its sum cannot have seen our events.
        UPDATE usage_counters AS counter
        SET used_microcents = counter.used_microcents + added.cost,
            calls = counter.calls + added.calls,
            updated_at = now()
        FROM (
            SELECT open.account_id, open.window_end, open.period, open.time_zone, open.week_start,
                   sum(event.cost)::bigint AS cost, sum(event.calls)::bigint AS calls
            FROM unnest(new_accounts, new_times, new_costs, new_calls) AS event(account_id, occurred_at, cost, calls)
            JOIN usage_counters AS open
              ON open.account_id = event.account_id
             AND open.window_end > event.occurred_at
             AND open.window_start <= event.occurred_at
             AND open.period <> 'total'
            GROUP BY open.account_id, open.window_end, open.period, open.time_zone, open.week_start
        ) AS added
        WHERE counter.account_id = added.account_id
          AND counter.window_end = added.window_end
          AND counter.period = added.period
          AND counter.time_zone = added.time_zone
          AND counter.week_start = added.week_start;
    END IF;

    -- 5. What stands now.
    SELECT timestamptz 'epoch' + min(ms) * interval '1 millisecond' INTO oldest FROM unnest(occurred_ms) AS event(ms);
    SELECT array_agg(counter.account_id),
           array_agg(counter.period || '/' || counter.time_zone || '/' || counter.week_start),
           array_agg((extract(epoch FROM counter.window_start) * 1000)::bigint),
           array_agg((extract(epoch FROM counter.window_end) * 1000)::bigint),
           array_agg(counter.used_microcents)
    INTO usage_accounts, usage_kinds, usage_start_ms, usage_end_ms, usage_microcents
    FROM (SELECT DISTINCT account_id FROM unnest(account_ids) AS event(account_id)) AS named
    JOIN usage_counters AS counter
      ON counter.account_id = named.account_id
     AND counter.window_end > oldest;
END
$$;

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
