-- The ledger's batch in pieces, between which Postgres leaves its processor to others (docs/decisions/0066).
BEGIN;

-- What casts cost, by the operator's statement: as in 0011, but where all cost the same that is divided once.
CREATE OR REPLACE FUNCTION castgate_charge_casts(
    cast_cost_sql     text,
    cast_ids          text[],
    costs_microcents  bigint[],
    wait              text,
    OUT casts_charged bigint,
    OUT casts_missing bigint,
    OUT casts_refused bigint,
    OUT casts_error   text,
    OUT casts_late    text[]    -- NULL, or all of them
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    cast_cents numeric[];
BEGIN
    casts_charged := 0;
    casts_missing := 0;
    casts_refused := 0;
    IF cast_cost_sql IS NOT NULL AND cardinality(cast_ids) > 0 THEN
        casts_late := cast_ids;
        IF costs_microcents[1] = ALL (costs_microcents) THEN
            cast_cents := array_fill(costs_microcents[1] / 1000000.0, ARRAY[cardinality(costs_microcents)]);
        ELSE
            SELECT array_agg(cost / 1000000.0 ORDER BY place) INTO cast_cents
            FROM unnest(costs_microcents) WITH ORDINALITY AS late(cost, place);
        END IF;
        PERFORM set_config('lock_timeout', wait, true);
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
    END IF;
END
$$;

-- Writes the usual batch: what castgate_write_usage (0014) does, which workers of earlier versions go on calling, in the same
-- statements and with the same answer. But a batch of a thousand events is some milliseconds of work. Where Postgres shares its
-- processors with what answers calls, these would wait for as long; so it lets go of its processor after each piece, as long as no
-- account is locked. And cast ids, which nearly all events have or none, are taken as they come.
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
    counted     bigint;
    oldest      timestamptz;
    newest      timestamptz;
    is_whole    boolean;
    more_accounts   text[];
    more_kinds      text[];
    more_start_ms   bigint[];
    more_end_ms     bigint[];
    more_microcents bigint[];
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

            -- 3. The totals, in order of account: from here on these accounts are ours until the commit.
            WITH total AS (
                UPDATE usage_counters AS counter
                SET used_microcents = counter.used_microcents + added.cost,
                    calls = counter.calls + added.calls,
                    updated_at = now()
                FROM (
                    SELECT coalesce(event.account_id, one_account) AS account_id,
                           sum(coalesce(event.cost, one_cost))::bigint AS cost, count(*) AS calls,
                           min(coalesce(event.ms, one_ms)) AS first_ms, max(coalesce(event.ms, one_ms)) AS last_ms
                    FROM (
                        SELECT unnest(event_ids) AS id, unnest(account_ids) AS account_id, unnest(costs_microcents) AS cost,
                               unnest(castgate_write_batch.occurred_ms) AS ms
                    ) AS event
                    GROUP BY 1
                    ORDER BY 1
                ) AS added
                WHERE counter.account_id = added.account_id
                  AND counter.window_end = timestamptz '9999-12-31 00:00:00+00'
                  AND counter.period = 'total' AND counter.time_zone = 'UTC' AND counter.week_start = 1
                RETURNING counter.account_id, counter.used_microcents, added.cost, added.calls, added.first_ms, added.last_ms
            )
            SELECT array_agg(total.account_id), array_agg(total.cost), array_agg(total.calls),
                   array_agg(total.used_microcents), sum(total.calls),
                   timestamptz 'epoch' + min(total.first_ms) * interval '1 millisecond',
                   timestamptz 'epoch' + max(total.last_ms) * interval '1 millisecond'
            INTO accounts, costs, numbers, usage_microcents, counted, oldest, newest
            FROM total;
            IF counted IS DISTINCT FROM number THEN  -- the first events of an account
                RAISE SQLSTATE 'CG001';
            END IF;

            -- 4. Every other counter that is open, in a snapshot from after the lock: a counter that somebody seeded meanwhile
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
                   bool_and(other.window_start > newest OR (other.window_start <= oldest AND other.window_end > newest))
            INTO more_accounts, more_kinds, more_start_ms, more_end_ms, more_microcents, is_whole
            FROM other;
            IF NOT is_whole THEN  -- a window begins or ends amid the events
                RAISE SQLSTATE 'CG001';
            END IF;

            usage_accounts := accounts || more_accounts;
            usage_kinds := array_fill('total/UTC/1'::text, ARRAY[cardinality(accounts)]) || more_kinds;
            usage_start_ms := array_fill(0::bigint, ARRAY[cardinality(accounts)]) || more_start_ms;
            usage_end_ms := array_fill(253402214400000, ARRAY[cardinality(accounts)]) || more_end_ms;
            usage_microcents := usage_microcents || more_microcents;
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

COMMIT;
