-- Counters are reached by the same plan however large their table was when it was made (docs/decisions/0068). All functions
-- give and leave what they did, so workers of earlier versions go on calling them. And all lock accounts in one order: that of
-- the column and its index, COLLATE "C", and not of what the database sorts other texts by.
BEGIN;

-- Adds to all counters of accounts, each account once, what their events come to, and gives what stands then; or says that it is
-- not so simple, and then nothing that was done may stay. By the protocol of 0006.
--
-- Counters are reached by an array of accounts and joined by hashing, and the planner is left no other way: for a table that was
-- small when a connection made its plan it would read all of it, and go on to when the table is large. And an array is looked
-- up in order, so that totals are locked in order of account, which a plan that begins with the table does not do.
CREATE OR REPLACE FUNCTION castgate_count_usage(
    accounts           text[],
    costs              bigint[],
    numbers            bigint[],     -- of events
    oldest             timestamptz,  -- of all
    newest             timestamptz,
    OUT is_usual       boolean,
    OUT usage_accounts text[],       -- the counters, as castgate_record_usage has them
    OUT usage_kinds    text[],
    OUT usage_start_ms bigint[],
    OUT usage_end_ms   bigint[],
    OUT usage_microcents bigint[]
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_indexscan = on
SET enable_hashjoin = on
SET enable_nestloop = off
SET enable_mergejoin = off
SET work_mem = '4MB'  -- for the largest batch's accounts: what goes to the disk in parts comes back in another order
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    more_accounts   text[];
    more_kinds      text[];
    more_start_ms   bigint[];
    more_end_ms     bigint[];
    more_microcents bigint[];
BEGIN
    -- 1. The totals: from here on these accounts are ours until the commit.
    WITH total AS (
        UPDATE usage_counters AS counter
        SET used_microcents = counter.used_microcents + added.cost,
            calls = counter.calls + added.calls,
            updated_at = now()
        FROM (
            SELECT unnest(accounts) AS account_id, unnest(costs) AS cost, unnest(numbers) AS calls
        ) AS added
        WHERE counter.account_id = added.account_id
          AND counter.account_id = ANY (accounts)
          AND counter.window_end = timestamptz '9999-12-31 00:00:00+00'
          AND counter.period = 'total' AND counter.time_zone = 'UTC' AND counter.week_start = 1
        RETURNING counter.account_id, counter.used_microcents
    )
    SELECT array_agg(total.account_id), array_agg(total.used_microcents)
    INTO usage_accounts, usage_microcents
    FROM total;
    IF cardinality(usage_accounts) IS DISTINCT FROM cardinality(accounts) THEN  -- the first events of an account
        is_usual := false;
        RETURN;
    END IF;

    -- 2. Every other counter that is open, in a snapshot from after the lock: a counter that somebody seeded meanwhile
    --    is here, and its sum cannot have seen our events.
    WITH other AS (
        UPDATE usage_counters AS counter
        SET used_microcents = counter.used_microcents
                              + CASE WHEN counter.window_start <= newest THEN added.cost ELSE 0 END,
            calls = counter.calls + CASE WHEN counter.window_start <= newest THEN added.calls ELSE 0 END,
            updated_at = now()
        FROM (
            SELECT unnest(accounts) AS account_id, unnest(costs) AS cost, unnest(numbers) AS calls
        ) AS added
        WHERE counter.account_id = added.account_id
          AND counter.account_id = ANY (accounts)
          AND counter.window_end > oldest
          AND counter.window_end < timestamptz '9999-12-31 00:00:00+00'
        RETURNING counter.account_id, counter.period, counter.time_zone, counter.week_start, counter.window_start,
                  counter.window_end, counter.used_microcents
    )
    SELECT array_agg(other.account_id),
           array_agg(other.period || '/' || other.time_zone || '/' || other.week_start),
           array_agg((date_part('epoch', other.window_start) * 1000)::bigint),
           array_agg((date_part('epoch', other.window_end) * 1000)::bigint),
           array_agg(other.used_microcents),
           -- Not so where a window begins or ends amid the events.
           coalesce(bool_and(other.window_start > newest OR (other.window_start <= oldest AND other.window_end > newest)), true)
    INTO more_accounts, more_kinds, more_start_ms, more_end_ms, more_microcents, is_usual
    FROM other;

    usage_kinds := array_fill('total/UTC/1'::text, ARRAY[cardinality(accounts)]) || more_kinds;
    usage_start_ms := array_fill(0::bigint, ARRAY[cardinality(accounts)]) || more_start_ms;
    usage_end_ms := array_fill(253402214400000, ARRAY[cardinality(accounts)]) || more_end_ms;
    usage_accounts := usage_accounts || more_accounts;
    usage_microcents := usage_microcents || more_microcents;
END
$$;

-- As in 0015, but what it does with counters is castgate_count_usage's.
CREATE OR REPLACE FUNCTION castgate_write_batch(
    event_ids          uuid[],
    account_ids        text[],
    policies           text[],
    occurred_ms        bigint[],
    costs_microcents   bigint[],
    upstream_statuses  smallint[],
    outcomes           text[],
    cast_ids           text[],
    request_ids        text[],
    cast_cost_sql      text,
    late_cast_ids      text[],
    late_microcents    bigint[],
    piece              integer,  -- after so many events others have a turn; NULL: all at once
    OUT recorded       bigint,
    OUT casts_charged  bigint,
    OUT casts_missing  bigint,
    OUT casts_refused  bigint,
    OUT casts_error    text,
    OUT casts_late     text[],
    OUT casts_late_microcents bigint[],
    OUT usage_accounts text[],
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
-- Planned once for a connection: an account or two let the plan for just these values look cheaper, and it would be made anew
-- for every batch, at twice what it takes to run it.
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    number      constant integer := cardinality(event_ids);
    one_account constant text := CASE WHEN cardinality(account_ids) = 1 THEN account_ids[1] END;
    one_policy  constant text := CASE WHEN cardinality(policies) = 1 THEN policies[1] END;
    one_ms      constant bigint := CASE WHEN cardinality(occurred_ms) = 1 THEN occurred_ms[1] END;
    one_cost    constant bigint := CASE WHEN cardinality(costs_microcents) = 1 THEN costs_microcents[1] END;
    one_status  constant smallint := CASE WHEN cardinality(upstream_statuses) = 1 THEN upstream_statuses[1] END;
    one_outcome constant text := CASE WHEN cardinality(outcomes) = 1 THEN outcomes[1] END;
    charged     record;
    accounts    text[];    -- each once, with what its events come to
    costs       bigint[];
    numbers     bigint[];
    oldest      timestamptz;
    newest      timestamptz;
    is_usual    boolean;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'usage is written at READ COMMITTED, not %', current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_state';
    END IF;

    IF number > 0 THEN
        BEGIN
            IF number > piece THEN  -- their parameters were read, which is work as well
                PERFORM pg_sleep(0.001);
            END IF;

            -- 1. The events. No question whether they are there: that would be a second search in the index for each, and a
            --    record in the log that says that it was not in vain.
            INSERT INTO usage_events (id, account_id, policy, occurred_at, cost_microcents, upstream_status, outcome,
                                      cast_id, request_id)
            SELECT event.id, coalesce(event.account_id, one_account), coalesce(event.policy, one_policy),
                   timestamptz 'epoch' + coalesce(event.occurred_ms, one_ms) * interval '1 millisecond',
                   coalesce(event.cost_microcents, one_cost), coalesce(event.upstream_status, one_status),
                   coalesce(event.outcome, one_outcome), event.cast_id, event.request_id
            FROM (
                SELECT unnest(event_ids) AS id, unnest(account_ids) AS account_id, unnest(policies) AS policy,
                       unnest(castgate_write_batch.occurred_ms) AS occurred_ms, unnest(costs_microcents) AS cost_microcents,
                       unnest(upstream_statuses) AS upstream_status, unnest(outcomes) AS outcome,
                       unnest(cast_ids) AS cast_id, unnest(request_ids) AS request_id,
                       generate_series(1, number) AS place
            ) AS event
            WHERE CASE WHEN event.place % piece = 0 THEN pg_sleep(0.001) IS NOT NULL ELSE true END;
            GET DIAGNOSTICS recorded = ROW_COUNT;
            IF recorded < number THEN  -- one is late (0010)
                RAISE SQLSTATE 'CG001';
            END IF;

            -- 2. The casts, before any account is locked: Phase 1 may hold their rows.
            casts_charged := 0;
            casts_missing := 0;
            casts_refused := 0;
            IF cast_cost_sql IS NOT NULL AND (cardinality(cast_ids) > 0 OR cardinality(late_cast_ids) > 0) THEN
                casts_late := cast_ids;
                casts_late_microcents := CASE
                    WHEN one_cost IS NULL AND cardinality(cast_ids) > 0 THEN costs_microcents
                    ELSE array_fill(one_cost, ARRAY[cardinality(cast_ids)])
                END;
                IF array_position(cast_ids, NULL) IS NOT NULL THEN
                    SELECT array_agg(event.cast_id), array_agg(event.cost)
                    INTO casts_late, casts_late_microcents
                    FROM (
                        SELECT unnest(cast_ids) AS cast_id, unnest(casts_late_microcents) AS cost
                    ) AS event
                    WHERE event.cast_id IS NOT NULL;
                END IF;
                IF number > piece THEN
                    PERFORM pg_sleep(0.001);
                END IF;
                casts_late := casts_late || late_cast_ids;
                casts_late_microcents := casts_late_microcents || late_microcents;
                SELECT * INTO charged FROM castgate_charge_casts(cast_cost_sql, casts_late, casts_late_microcents, '250ms');
                casts_charged := charged.casts_charged;
                casts_missing := charged.casts_missing;
                casts_refused := charged.casts_refused;
                casts_error := charged.casts_error;
                casts_late := charged.casts_late;
                casts_late_microcents := CASE WHEN charged.casts_late IS NOT NULL THEN casts_late_microcents END;
            END IF;

            -- 3. What each account's events come to, in order of account; and their counters.
            IF one_account IS NOT NULL THEN
                SELECT ARRAY[one_account], ARRAY[coalesce(number * one_cost, sum(event.cost))]::bigint[],
                       ARRAY[number]::bigint[], timestamptz 'epoch' + min(event.ms) * interval '1 millisecond',
                       timestamptz 'epoch' + max(event.ms) * interval '1 millisecond'
                INTO accounts, costs, numbers, oldest, newest
                FROM (
                    SELECT unnest(costs_microcents) AS cost, unnest(castgate_write_batch.occurred_ms) AS ms
                ) AS event;
            ELSE
                SELECT array_agg(added.account_id), array_agg(added.cost), array_agg(added.calls),
                       timestamptz 'epoch' + min(added.first_ms) * interval '1 millisecond',
                       timestamptz 'epoch' + max(added.last_ms) * interval '1 millisecond'
                INTO accounts, costs, numbers, oldest, newest
                FROM (
                    SELECT event.account_id COLLATE "C" AS account_id, sum(coalesce(event.cost, one_cost))::bigint AS cost,
                           count(*) AS calls,
                           min(coalesce(event.ms, one_ms)) AS first_ms, max(coalesce(event.ms, one_ms)) AS last_ms
                    FROM (
                        SELECT unnest(event_ids) AS id, unnest(account_ids) AS account_id, unnest(costs_microcents) AS cost,
                               unnest(castgate_write_batch.occurred_ms) AS ms
                    ) AS event
                    GROUP BY 1
                    ORDER BY 1
                ) AS added;
            END IF;
            SELECT * INTO is_usual, usage_accounts, usage_kinds, usage_start_ms, usage_end_ms, usage_microcents
            FROM castgate_count_usage(accounts, costs, numbers, oldest, newest);
            IF NOT is_usual THEN
                RAISE SQLSTATE 'CG001';
            END IF;
            RETURN;
        EXCEPTION
            WHEN unique_violation OR SQLSTATE 'CG001' THEN
                NULL;
        END;
    END IF;

    SELECT * INTO recorded, casts_charged, casts_missing, casts_refused, casts_error, casts_late, casts_late_microcents,
                  usage_accounts, usage_kinds, usage_start_ms, usage_end_ms, usage_microcents
    FROM castgate_record_usage(
        event_ids,
        CASE WHEN one_account IS NULL THEN account_ids ELSE array_fill(one_account, ARRAY[number]) END,
        CASE WHEN one_policy IS NULL THEN policies ELSE array_fill(one_policy, ARRAY[number]) END,
        CASE WHEN one_ms IS NULL THEN castgate_write_batch.occurred_ms ELSE array_fill(one_ms, ARRAY[number]) END,
        CASE WHEN one_cost IS NULL THEN costs_microcents ELSE array_fill(one_cost, ARRAY[number]) END,
        CASE WHEN one_status IS NULL THEN upstream_statuses ELSE array_fill(one_status, ARRAY[number]) END,
        CASE WHEN one_outcome IS NULL THEN outcomes ELSE array_fill(one_outcome, ARRAY[number]) END,
        cast_ids, request_ids, cast_cost_sql, late_cast_ids, late_microcents
    );
END
$$;

-- As in 0011 and 0014, but for how it reaches counters: as castgate_count_usage.
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
    free_kinds         text[] DEFAULT '{}',    -- these seven as castgate_settle_terms has them; empty: no event has terms
    free_start_ms      bigint[] DEFAULT '{}',
    free_end_ms        bigint[] DEFAULT '{}',
    units              bigint[] DEFAULT '{}',
    free_limits        bigint[] DEFAULT '{}',
    keys               text[] DEFAULT '{}',
    key_lives_ms       bigint[] DEFAULT '{}',
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
SET enable_bitmapscan = off
SET enable_indexscan = on
SET enable_hashjoin = on
SET enable_nestloop = off
SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    new_accounts text[];
    new_times    timestamptz[];
    new_costs    bigint[];
    new_calls    bigint[];
    with_terms   uuid[];     -- of the events that have terms: all, and then those that are new
    terms        record;
    charged      record;
    oldest       timestamptz;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'usage is written at READ COMMITTED, not %', current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    casts_charged := 0;
    casts_missing := 0;
    casts_refused := 0;
    with_terms := '{}';
    IF cardinality(free_kinds) > 0 THEN
        SELECT coalesce(array_agg(event.id), '{}') INTO with_terms
        FROM unnest(event_ids, free_kinds, keys) AS event(id, kind, key)
        WHERE event.kind IS NOT NULL OR event.key IS NOT NULL;
    END IF;

    -- 1. The events. Sorted: two writers that replay the same events wait for each other in one direction only.
    WITH inserted AS (
        INSERT INTO usage_events (id, account_id, policy, occurred_at, cost_microcents, upstream_status, outcome,
                                  cast_id, request_id, units, free_units)
        SELECT event.id, event.account_id, event.policy,
               timestamptz 'epoch' + event.occurred_ms * interval '1 millisecond',
               event.cost_microcents, event.upstream_status, event.outcome, event.cast_id, event.request_id,
               event.units, CASE WHEN event.units IS NOT NULL THEN 0 END
        FROM unnest(event_ids, account_ids, policies, occurred_ms, costs_microcents, upstream_statuses, outcomes,
                    cast_ids, request_ids, units)
             AS event(id, account_id, policy, occurred_ms, cost_microcents, upstream_status, outcome,
                      cast_id, request_id, units)
        ORDER BY event.id
        ON CONFLICT (id) DO NOTHING
        RETURNING usage_events.id, usage_events.account_id, usage_events.occurred_at, usage_events.cast_id,
                  CASE WHEN usage_events.id = ANY(with_terms) THEN NULL ELSE usage_events.cost_microcents END AS cost_microcents
    ),
    -- A call's time is its admission's, which many calls share: what follows costs by such groups and not by calls.
    grouped AS (
        SELECT inserted.account_id, inserted.occurred_at, coalesce(sum(inserted.cost_microcents), 0)::bigint AS cost, count(*) AS calls
        FROM inserted
        GROUP BY inserted.account_id, inserted.occurred_at
    )
    SELECT coalesce(sum(grouped.calls), 0),
           array_agg(grouped.account_id), array_agg(grouped.occurred_at), array_agg(grouped.cost),
           array_agg(grouped.calls),
           (SELECT array_agg(inserted.cast_id) FROM inserted
            WHERE inserted.cast_id IS NOT NULL AND inserted.cost_microcents IS NOT NULL),
           (SELECT array_agg(inserted.cost_microcents) FROM inserted
            WHERE inserted.cast_id IS NOT NULL AND inserted.cost_microcents IS NOT NULL),
           (SELECT array_agg(inserted.id) FROM inserted WHERE inserted.cost_microcents IS NULL)
    INTO recorded, new_accounts, new_times, new_costs, new_calls, casts_late, casts_late_microcents, with_terms
    FROM grouped;

    -- 2. The casts, before any account is locked: Phase 1 may hold their rows.
    casts_late := casts_late || late_cast_ids;
    casts_late_microcents := casts_late_microcents || late_microcents;
    SELECT * INTO charged FROM castgate_charge_casts(cast_cost_sql, casts_late, casts_late_microcents, '250ms');
    casts_charged := charged.casts_charged;
    casts_missing := charged.casts_missing;
    casts_refused := charged.casts_refused;
    casts_error := charged.casts_error;
    casts_late := charged.casts_late;
    casts_late_microcents := CASE WHEN charged.casts_late IS NOT NULL THEN casts_late_microcents END;

    IF recorded > 0 THEN
        -- 3. The totals: from here on these accounts are ours until the commit.
        INSERT INTO usage_counters AS counter (account_id, window_end, period, time_zone, week_start, window_start,
                                               used_microcents, calls)
        SELECT event.account_id COLLATE "C", timestamptz '9999-12-31 00:00:00+00', 'total', 'UTC', 1, timestamptz 'epoch',
               sum(event.cost), sum(event.calls)
        FROM unnest(new_accounts, new_costs, new_calls) AS event(account_id, cost, calls)
        GROUP BY 1
        ORDER BY 1
        ON CONFLICT (account_id, window_end, period, time_zone, week_start) DO UPDATE
            SET used_microcents = counter.used_microcents + excluded.used_microcents,
                calls = counter.calls + excluded.calls,
                updated_at = now();

        IF with_terms IS NOT NULL THEN
            terms := castgate_settle_terms(
                with_terms, event_ids, account_ids, policies, occurred_ms, costs_microcents, cast_ids,
                free_kinds, free_start_ms, free_end_ms, units, free_limits, keys, key_lives_ms
            );
            UPDATE usage_counters AS counter
            SET used_microcents = counter.used_microcents + added.cost
            FROM (
                SELECT event.account_id, sum(event.cost)::bigint AS cost
                FROM unnest(terms.accounts, terms.costs) AS event(account_id, cost)
                GROUP BY event.account_id
            ) AS added
            WHERE counter.account_id = added.account_id
              AND counter.account_id = ANY (terms.accounts)
              AND counter.window_end = timestamptz '9999-12-31 00:00:00+00'
              AND counter.period = 'total' AND counter.time_zone = 'UTC' AND counter.week_start = 1;
            new_accounts := new_accounts || terms.accounts;
            new_times := new_times || terms.times;
            new_costs := new_costs || terms.costs;
            new_calls := new_calls || array_fill(0::bigint, ARRAY[cardinality(terms.accounts)]);
        END IF;

        SELECT min(event.at) INTO oldest FROM unnest(new_times) AS event(at);

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
             AND open.account_id = ANY (new_accounts)
             AND open.window_end > oldest
             AND open.window_end > event.occurred_at
             AND open.window_start <= event.occurred_at
             AND open.period <> 'total'
            GROUP BY open.account_id, open.window_end, open.period, open.time_zone, open.week_start
        ) AS added
        WHERE counter.account_id = added.account_id
          AND counter.account_id = ANY (new_accounts)
          AND counter.window_end > oldest
          AND counter.window_end = added.window_end
          AND counter.period = added.period
          AND counter.time_zone = added.time_zone
          AND counter.week_start = added.week_start;

        -- The casts whose cost is only known now. The accounts are locked, so a cast that is locked is not waited for: it
        -- is late.
        IF with_terms IS NOT NULL THEN
            SELECT * INTO charged FROM castgate_charge_casts(cast_cost_sql, terms.casts, terms.cast_costs, '2ms');
            casts_charged := casts_charged + charged.casts_charged;
            casts_missing := casts_missing + charged.casts_missing;
            casts_refused := casts_refused + charged.casts_refused;
            casts_error := coalesce(charged.casts_error, casts_error);
            IF charged.casts_late IS NOT NULL THEN
                casts_late := casts_late || charged.casts_late;
                casts_late_microcents := casts_late_microcents || terms.cast_costs;
            END IF;
        END IF;
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
     AND counter.account_id = ANY (account_ids)
     AND counter.window_end > oldest;
    IF cardinality(free_kinds) > 0 THEN
        SELECT usage_accounts || array_agg(counter.account_id),
               usage_kinds || array_agg(counter.kind),
               usage_start_ms || array_agg((extract(epoch FROM counter.window_start) * 1000)::bigint),
               usage_end_ms || array_agg((extract(epoch FROM counter.window_end) * 1000)::bigint),
               usage_microcents || array_agg(counter.used_units)
        INTO usage_accounts, usage_kinds, usage_start_ms, usage_end_ms, usage_microcents
        FROM (SELECT DISTINCT account_id FROM unnest(account_ids, free_kinds) AS event(account_id, kind)
              WHERE event.kind IS NOT NULL) AS named
        JOIN usage_units AS counter
          ON counter.account_id = named.account_id
         AND counter.account_id = ANY (account_ids)
         AND counter.window_end > oldest;
    END IF;
END
$$;

-- Called by castgate_record_usage, whose joins are not those that the operator's statement needs.
ALTER FUNCTION castgate_charge_casts SET enable_nestloop = on;
ALTER FUNCTION castgate_charge_casts SET enable_bitmapscan = on;
ALTER FUNCTION castgate_charge_casts SET enable_hashjoin = off;

-- As in 0011, but for how it reaches counts, and that an event which comes twice in a batch is charged once.
CREATE OR REPLACE FUNCTION castgate_settle_terms(
    new_ids       uuid[],
    event_ids     uuid[],
    account_ids   text[],
    policies      text[],
    occurred_ms   bigint[],
    prices        bigint[],
    cast_ids      text[],
    free_kinds    text[],
    free_start_ms bigint[],
    free_end_ms   bigint[],
    units         bigint[],
    free_limits   bigint[],
    keys          text[],
    key_lives_ms  bigint[],
    OUT accounts   text[],         -- of new_ids
    OUT times      timestamptz[],
    OUT costs      bigint[],
    OUT casts      text[],         -- of those of them that charge a cast
    OUT cast_costs bigint[]
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_nestloop = on
SET enable_bitmapscan = on
AS $$
DECLARE
    keyed   record;
    billed  record;
    repeats uuid[] := '{}';
    firsts  uuid[] := '{}';  -- the events that were billed instead
    ids     uuid[];
    named   text[];
    counted bigint[];
    free    bigint[];
BEGIN
    -- 1. The keys.
    FOR keyed IN
        SELECT DISTINCT ON (event.id) event.id, event.account_id, event.policy, event.key,
               timestamptz 'epoch' + event.occurred_ms * interval '1 millisecond' AS occurred_at,
               timestamptz 'epoch' + (event.occurred_ms + event.life_ms) * interval '1 millisecond' AS expires_at
        FROM unnest(event_ids, account_ids, policies, occurred_ms, keys, key_lives_ms)
             AS event(id, account_id, policy, occurred_ms, key, life_ms)
        WHERE event.key IS NOT NULL AND event.id = ANY(new_ids)
        ORDER BY event.id
    LOOP
        SELECT known.event_id, known.occurred_at, known.expires_at INTO billed
        FROM billed_keys AS known
        WHERE known.account_id = keyed.account_id AND known.policy = keyed.policy AND known.key = keyed.key;
        IF FOUND AND billed.expires_at > keyed.occurred_at AND keyed.expires_at > billed.occurred_at THEN
            repeats := repeats || keyed.id;
            firsts := firsts || billed.event_id;
        ELSIF NOT FOUND OR billed.expires_at <= keyed.occurred_at THEN
            INSERT INTO billed_keys AS known (account_id, policy, key, event_id, occurred_at, expires_at)
            VALUES (keyed.account_id, keyed.policy, keyed.key, keyed.id, keyed.occurred_at, keyed.expires_at)
            ON CONFLICT (account_id, policy, key) DO UPDATE
                SET event_id = excluded.event_id, occurred_at = excluded.occurred_at, expires_at = excluded.expires_at;
        END IF;  -- else a late event from long before that one: billed, and not remembered
    END LOOP;

    -- 2. The counts that are not there yet, each with what was counted before these events.
    INSERT INTO usage_units (account_id, kind, window_end, window_start, policy, used_units)
    SELECT asked.account_id, asked.kind, asked.ends, asked.starts, asked.policy,
           castgate_used_units(asked.account_id, asked.policy, asked.kind, asked.starts, asked.ends, new_ids)
    FROM (
        SELECT DISTINCT event.account_id, event.kind, event.policy,
               timestamptz 'epoch' + event.start_ms * interval '1 millisecond' AS starts,
               timestamptz 'epoch' + event.end_ms * interval '1 millisecond' AS ends
        FROM unnest(event_ids, account_ids, policies, free_kinds, free_start_ms, free_end_ms)
             AS event(id, account_id, policy, kind, start_ms, end_ms)
        WHERE event.kind IS NOT NULL AND event.id = ANY(new_ids)
    ) AS asked
    ORDER BY asked.account_id, asked.kind, asked.ends
    ON CONFLICT (account_id, kind, window_end) DO NOTHING;

    -- 3. Who gets what is free.
    WITH asked AS (
        -- An event may come twice in a batch; it is one.
        SELECT DISTINCT ON (event.id)
               event.id, event.account_id, event.policy, event.kind, event.price, event.cast_id, event.free_limit,
               timestamptz 'epoch' + event.occurred_ms * interval '1 millisecond' AS occurred_at,
               timestamptz 'epoch' + event.end_ms * interval '1 millisecond' AS ends,
               event.id = ANY(repeats) AS is_repeat,
               CASE WHEN event.id = ANY(repeats) THEN 0 ELSE event.units END AS units
        FROM unnest(event_ids, account_ids, policies, occurred_ms, prices, cast_ids, free_kinds, free_end_ms, units,
                    free_limits)
             AS event(id, account_id, policy, occurred_ms, price, cast_id, kind, end_ms, units, free_limit)
        WHERE event.id = ANY(new_ids)
    ), placed AS (
        SELECT asked.*, sum(asked.units) OVER (PARTITION BY account_id, kind, ends ORDER BY id) - asked.units AS before
        FROM asked
    ), shared AS (
        SELECT placed.*,
               greatest(0, least(placed.units, placed.free_limit - counter.used_units - placed.before))::bigint AS free
        FROM placed
        LEFT JOIN LATERAL (
            SELECT known.used_units FROM usage_units AS known
            WHERE known.account_id = placed.account_id AND known.kind = placed.kind AND known.window_end = placed.ends
            LIMIT 1  -- one lookup by key for each, however few rows there were when this was planned
        ) AS counter ON true
    ), charged AS (
        SELECT shared.*,
               CASE
                   WHEN shared.is_repeat THEN 0
                   WHEN shared.kind IS NULL OR shared.free = 0 THEN shared.price
                   ELSE div(shared.price::numeric * (shared.units - shared.free) + shared.units - 1, shared.units)::bigint
               END AS cost
        FROM shared
    )
    SELECT array_agg(charged.account_id ORDER BY id), array_agg(occurred_at ORDER BY id),
           array_agg(cost ORDER BY id), array_agg(id ORDER BY id), array_agg(charged.policy ORDER BY id),
           array_agg(CASE WHEN kind IS NOT NULL THEN charged.units END ORDER BY id),
           array_agg(CASE WHEN kind IS NOT NULL THEN charged.free END ORDER BY id),
           array_agg(cast_id ORDER BY id) FILTER (WHERE cast_id IS NOT NULL AND NOT is_repeat),
           array_agg(cost ORDER BY id) FILTER (WHERE cast_id IS NOT NULL AND NOT is_repeat)
    INTO accounts, times, costs, ids, named, counted, free, casts, cast_costs
    FROM charged;

    UPDATE usage_events AS event
    SET cost_microcents = told.cost, units = told.units, free_units = told.free,
        repeat_of = firsts[array_position(repeats, told.id)]
    FROM unnest(ids, costs, counted, free) AS told(id, cost, units, free)
    WHERE event.id = told.id AND (told.free > 0 OR told.id = ANY(repeats));

    -- 4. Every count of the policy that holds the event's time; another period may have been in force before.
    -- All of them are there: it is written as an INSERT because that looks each up by its key, whatever the planner thinks.
    INSERT INTO usage_units AS counter (account_id, kind, window_end, window_start, policy, used_units)
    SELECT open.account_id, open.kind, open.window_end, min(open.window_start), min(open.policy),
           least(sum(told.units), 9007199254740991)::bigint
    FROM unnest(accounts, named, times, counted) AS told(account_id, policy, occurred_at, units)
    CROSS JOIN LATERAL (
        SELECT known.account_id, known.kind, known.window_end, known.window_start, known.policy
        FROM usage_units AS known
        WHERE known.account_id = told.account_id
          AND known.policy = told.policy
          AND known.window_start <= told.occurred_at
          AND known.window_end > told.occurred_at
        OFFSET 0
    ) AS open
    WHERE told.units > 0
    GROUP BY open.account_id, open.kind, open.window_end
    ON CONFLICT (account_id, kind, window_end) DO UPDATE
        SET used_units = least(counter.used_units::numeric + excluded.used_units, 9007199254740991)::bigint,
            updated_at = now();
END
$$;

-- As in 0006, but for how it looks counters up, and for the order.
CREATE OR REPLACE FUNCTION castgate_seed_usage(
    account_ids text[],
    periods     text[],
    time_zones  text[],
    week_starts smallint[],
    start_ms    bigint[],
    end_ms      bigint[]
) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '2s'
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    starts  timestamptz[];
    ends    timestamptz[];
    lacking integer[];       -- places of counters that do not exist
    used    bigint[];
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'usage is seeded at READ COMMITTED, not %', current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    SELECT array_agg(timestamptz 'epoch' + span.start_ms * interval '1 millisecond' ORDER BY span.place),
           array_agg(timestamptz 'epoch' + span.end_ms * interval '1 millisecond' ORDER BY span.place)
    INTO starts, ends
    FROM unnest(start_ms, end_ms) WITH ORDINALITY AS span(start_ms, end_ms, place);

    FOR attempt IN 1 .. 2 LOOP
        SELECT array_agg(counter.used_microcents ORDER BY asked.place),
               array_agg(asked.place::integer) FILTER (WHERE counter.account_id IS NULL)
        INTO used, lacking
        FROM unnest(account_ids, ends, periods, time_zones, week_starts) WITH ORDINALITY
             AS asked(account_id, window_end, period, time_zone, week_start, place)
        LEFT JOIN LATERAL (
            SELECT known.account_id, known.used_microcents FROM usage_counters AS known
            WHERE known.account_id = asked.account_id AND known.window_end = asked.window_end
              AND known.period = asked.period AND known.time_zone = asked.time_zone AND known.week_start = asked.week_start
            LIMIT 1  -- one lookup by key for each, however few rows there were when this was planned
        ) AS counter ON true;
        -- The usual case after Redis was lost: all of it is there, and no lock is needed to read what is committed.
        EXIT WHEN lacking IS NULL OR attempt = 2;

        -- Lock. An account without a total has no events, so 0 is its sum. WHERE false: lock the row, leave it as it is.
        INSERT INTO usage_counters (account_id, window_end, period, time_zone, week_start, window_start)
        SELECT DISTINCT account_ids[place] COLLATE "C", timestamptz '9999-12-31 00:00:00+00', 'total', 'UTC', 1,
                        timestamptz 'epoch'
        FROM unnest(lacking) AS place
        ORDER BY 1
        ON CONFLICT (account_id, window_end, period, time_zone, week_start) DO UPDATE
            SET used_microcents = usage_counters.used_microcents
            WHERE false;

        -- Sum, in a snapshot from after the lock: who wrote events before us has committed them, and who has not yet
        -- got the lock will find our counter and add to it.
        INSERT INTO usage_counters (account_id, window_end, period, time_zone, week_start, window_start,
                                    used_microcents, calls)
        SELECT account_ids[place], ends[place], periods[place], time_zones[place], week_starts[place], starts[place],
               coalesce(past.cost, 0), past.calls
        FROM unnest(lacking) AS place
        CROSS JOIN LATERAL (
            SELECT sum(event.cost_microcents) AS cost, count(*) AS calls
            FROM usage_events AS event
            WHERE event.account_id = account_ids[place]
              AND event.occurred_at >= starts[place]
              AND event.occurred_at < ends[place]
        ) AS past
        ON CONFLICT (account_id, window_end, period, time_zone, week_start) DO NOTHING;
    END LOOP;
    RETURN used;
END
$$;

-- As in 0011 and 0010, but for the order.
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
    free_kinds     text[] DEFAULT '{}',
    free_start_ms  bigint[] DEFAULT '{}',
    free_end_ms    bigint[] DEFAULT '{}',
    units          bigint[] DEFAULT '{}',
    free_limits    bigint[] DEFAULT '{}',
    keys           text[] DEFAULT '{}',
    key_lives_ms   bigint[] DEFAULT '{}',
    OUT outcomes   smallint[],
    OUT places     integer[],
    OUT details    bigint[],
    OUT now_ms     bigint,
    OUT needs      bigint[]     -- what the call would have had to hold, where a budget refuses it
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
    need     bigint;
    tiers    text[];   -- of the calls, each by account, kind and window
    tier     integer;
    tier_used  bigint[];
    tier_held  bigint[];
    reserves bigint[];
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
    SELECT DISTINCT account_id COLLATE "C", timestamptz '9999-12-31 00:00:00+00', 'total', 'UTC', 1, timestamptz 'epoch'
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
           array_agg((SELECT coalesce(sum(hold.amount_microcents) FILTER (WHERE hold.free_kind IS NULL), 0)
                             + CASE WHEN count(hold.free_kind) > 0 THEN
                                   (SELECT coalesce(sum(tier.reserve), 0) FROM castgate_reserves(asked.account_id) AS tier)
                               ELSE 0 END
                      FROM usage_holds AS hold
                      WHERE hold.account_id = asked.account_id)::bigint ORDER BY asked.place)
    INTO versions, held
    FROM unnest(entry_accounts) WITH ORDINALITY AS asked(account_id, place)
    LEFT JOIN LATERAL (
        SELECT facts_version FROM billing_accounts WHERE account_id = asked.account_id LIMIT 1
    ) AS billing ON true;

    IF cardinality(free_kinds) > 0 THEN
        SELECT array_agg(asked.tier), array_agg(asked.used), array_agg(standing.units),
               array_agg(standing.reserve)
        INTO tiers, tier_used, tier_held, reserves
        FROM (
            SELECT DISTINCT ON (1) entry_accounts[call.entry] || ' ' || call.kind || ' ' || call.start_ms AS tier,
                   entry_accounts[call.entry] AS account_id, call.kind, timestamptz 'epoch' + call.start_ms * interval '1 millisecond' AS starts,
                   castgate_used_units(entry_accounts[call.entry], call.policy, call.kind,
                                       timestamptz 'epoch' + call.start_ms * interval '1 millisecond',
                                       timestamptz 'epoch' + call.end_ms * interval '1 millisecond') AS used
            FROM unnest(call_entries, policies, free_kinds, free_start_ms, free_end_ms)
                 AS call(entry, policy, kind, start_ms, end_ms)
            WHERE call.kind IS NOT NULL
        ) AS asked
        CROSS JOIN LATERAL (
            SELECT coalesce(max(tier.units), 0) AS units, coalesce(max(tier.reserve), 0) AS reserve
            FROM castgate_reserves(asked.account_id) AS tier
            WHERE tier.kind = asked.kind AND tier.starts = asked.starts
        ) AS standing;
    END IF;
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
        needs[at] := 0;
        IF versions[entry] > entry_versions[entry] THEN
            outcomes[at] := 3;
            details[at] := versions[entry];
            CONTINUE;
        END IF;
        owner := array_position(entry_accounts, entry_accounts[entry]);
        place := firsts[entry];
        need := amounts[at];
        IF free_kinds[at] IS NOT NULL THEN
            tier := array_position(tiers, entry_accounts[entry] || ' ' || free_kinds[at] || ' ' || free_start_ms[at]);
            need := castgate_reserve(tier_used[tier], tier_held[tier] + units[at], free_limits[at], amounts[at], units[at])
                    - reserves[tier];
        END IF;
        WHILE need > 0 AND window_entries[place] = entry LOOP
            taken := used[place] + held[owner];
            IF taken + need > hard_limits[place] THEN
                outcomes[at] := 1;
                places[at] := place - firsts[entry];
                details[at] := taken;
                needs[at] := need;
                EXIT;
            END IF;
            place := place + 1;
        END LOOP;
        IF outcomes[at] = 0 AND NOT only_asks[at] THEN
            held[owner] := held[owner] + need;
            IF free_kinds[at] IS NOT NULL THEN
                tier_held[tier] := tier_held[tier] + units[at];
                reserves[tier] := reserves[tier] + need;
            END IF;
        END IF;
    END LOOP;

    now_ms := (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
    INSERT INTO usage_holds (id, account_id, amount_microcents, admitted_at, policy, worker_id, free_kind, free_start_ms,
                             free_end_ms, units, free_limit, key, key_life_ms)
    SELECT asked.id, entry_accounts[asked.entry], asked.amount,
           timestamptz 'epoch' + now_ms * interval '1 millisecond', asked.policy, worker,
           asked.kind, asked.free_start_ms, asked.free_end_ms, asked.units, asked.free_limit, asked.key, asked.key_life_ms
    FROM unnest(call_entries, hold_ids, amounts, policies, only_asks, outcomes, free_kinds, free_start_ms, free_end_ms,
                units, free_limits, keys, key_lives_ms)
         AS asked(entry, id, amount, policy, only_asks, outcome, kind, free_start_ms, free_end_ms,
                  units, free_limit, key, key_life_ms)
    WHERE asked.outcome = 0 AND NOT asked.only_asks
    ON CONFLICT (id) DO NOTHING;
END
$$;

CREATE OR REPLACE FUNCTION castgate_repair_usage(account_ids text[])
RETURNS bigint  -- counters that were wrong
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '2s'
AS $$
DECLARE
    repaired bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'usage is repaired at READ COMMITTED, not %', current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_state';
    END IF;

    -- An account that has events and no total gets one here. WHERE false: lock the row, leave it as it is.
    INSERT INTO usage_counters (account_id, window_end, period, time_zone, week_start, window_start)
    SELECT DISTINCT asked.account_id COLLATE "C", timestamptz '9999-12-31 00:00:00+00', 'total', 'UTC', 1, timestamptz 'epoch'
    FROM unnest(account_ids) AS asked(account_id)
    ORDER BY 1
    ON CONFLICT (account_id, window_end, period, time_zone, week_start) DO UPDATE
        SET used_microcents = usage_counters.used_microcents
        WHERE false;

    UPDATE usage_counters AS counter
    SET used_microcents = past.cost, calls = past.calls, updated_at = now()
    FROM (
        SELECT known.account_id, known.window_end, known.period, known.time_zone, known.week_start,
               sums.cost + coalesce(archived.cost_microcents, 0) AS cost, sums.calls + coalesce(archived.calls, 0) AS calls
        FROM usage_counters AS known
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(event.cost_microcents), 0)::bigint AS cost, count(*) AS calls
            FROM usage_events AS event
            WHERE event.account_id = known.account_id
              AND event.occurred_at >= known.window_start AND event.occurred_at < known.window_end
        ) AS sums
        LEFT JOIN usage_archived AS archived ON archived.account_id = known.account_id AND known.period = 'total'
        WHERE known.account_id = ANY(account_ids)
          AND (known.period = 'total' OR known.window_start >= ALL (SELECT until FROM usage_months_dropped))
          AND (known.used_microcents, known.calls) IS DISTINCT FROM
              (sums.cost + coalesce(archived.cost_microcents, 0), sums.calls + coalesce(archived.calls, 0))
    ) AS past
    WHERE counter.account_id = past.account_id
      AND counter.window_end = past.window_end
      AND counter.period = past.period
      AND counter.time_zone = past.time_zone
      AND counter.week_start = past.week_start;
    GET DIAGNOSTICS repaired = ROW_COUNT;
    RETURN repaired;
END
$$;

COMMIT;
