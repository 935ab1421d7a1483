-- Calls that cost less than their price: the first units of a period under a free tier, and repeats of a call that was billed
-- (an idempotency key). Both are decided when the event is written, under the account's lock (0006), so the ledger is exact
-- whatever way the event came.
BEGIN;

-- All NULL for a call without a free tier and a key. Units are smallest units, see gateway/policy/free_tier.py.
ALTER TABLE usage_events
    ADD COLUMN units      bigint,  -- that the call counts in its free tier
    ADD COLUMN free_units bigint,  -- of them, those that cost nothing
    ADD COLUMN repeat_of  uuid;    -- the event that was billed for the same idempotency key; this one cost nothing

-- What a free tier has counted in a window: the sum of the units of its events, up to 2^53 - 1.
CREATE TABLE usage_units (
    account_id   text COLLATE "C" NOT NULL,
    kind         text COLLATE "C" NOT NULL,  -- the tier's name in every store
    window_end   timestamptz NOT NULL,
    window_start timestamptz NOT NULL,
    policy       text NOT NULL,
    used_units   bigint NOT NULL,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, kind, window_end)
);

-- Idempotency keys that were billed, each until its life is over.
CREATE TABLE billed_keys (
    account_id  text COLLATE "C" NOT NULL,
    policy      text COLLATE "C" NOT NULL,
    key         text COLLATE "C" NOT NULL,   -- a digest
    event_id    uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (account_id, policy, key)
);

CREATE INDEX billed_keys_expiry ON billed_keys (expires_at);

-- The terms of a call under way; free_kind and key NULL: it has none.
ALTER TABLE usage_holds
    ADD COLUMN free_kind     text,
    ADD COLUMN free_start_ms bigint,
    ADD COLUMN free_end_ms   bigint,
    ADD COLUMN units         bigint,
    ADD COLUMN free_limit    bigint,
    ADD COLUMN key           text,
    ADD COLUMN key_life_ms   bigint;

DROP FUNCTION IF EXISTS castgate_record_usage(
    uuid[], text[], text[], bigint[], bigint[], smallint[], text[], text[], text[], text, text[], bigint[]
);
DROP FUNCTION IF EXISTS castgate_admit(
    text, uuid[], text[], bigint[], integer[], text[], text[], smallint[], bigint[], bigint[], bigint[], integer[], uuid[],
    bigint[], text[], boolean[]
);

-- What casts cost, by the operator's statement (see castgate_record_usage); part of that, and called by it alone. Waits no
-- longer than `wait` for a row that Phase 1 has locked: then all of them are late.
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
        SELECT array_agg(cost / 1000000.0 ORDER BY place) INTO cast_cents
        FROM unnest(costs_microcents) WITH ORDINALITY AS late(cost, place);
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

-- The units that a free tier has counted: from its row or, where there is none yet, from the events (other than `besides`).
CREATE OR REPLACE FUNCTION castgate_used_units(
    asked_account text, asked_policy text, asked_kind text, starts timestamptz, ends timestamptz, besides uuid[] DEFAULT '{}'
) RETURNS bigint
LANGUAGE sql STABLE
AS $$
    SELECT coalesce(
        (SELECT counter.used_units FROM usage_units AS counter
         WHERE counter.account_id = asked_account AND counter.kind = asked_kind AND counter.window_end = ends),
        (SELECT least(coalesce(sum(event.units), 0), 9007199254740991)::bigint FROM usage_events AS event
         WHERE event.account_id = asked_account AND event.policy = asked_policy
           AND event.occurred_at >= starts AND event.occurred_at < ends AND event.id <> ALL(besides))
    )
$$;

-- What new events with terms cost; part of castgate_record_usage, which has locked their accounts. The arrays are those of
-- all events of the batch, NULL where one has no tier or no key:
--   free_kinds, free_start_ms, free_end_ms  the free tier and its window at the event's time
--   units, free_limits                      what the call counts, and how many units of the window cost nothing
--   keys, key_lives_ms                      a digest of the idempotency key, and how long it counts
-- In order of id: an event whose key was billed by another within its life costs nothing and counts nothing; of the units of
-- the others those that the tier has left cost nothing, and the call the others' share of its price, rounded up.
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
        SELECT event.id, event.account_id, event.policy, event.key,
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
        SELECT event.id, event.account_id, event.policy, event.kind, event.price, event.cast_id, event.free_limit,
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
        LEFT JOIN usage_units AS counter
          ON counter.account_id = placed.account_id AND counter.kind = placed.kind AND counter.window_end = placed.ends
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
    UPDATE usage_units AS counter
    SET used_units = least(counter.used_units::numeric + added.units, 9007199254740991)::bigint, updated_at = now()
    FROM (
        SELECT open.account_id, open.kind, open.window_end, sum(told.units) AS units
        FROM unnest(accounts, named, times, counted) AS told(account_id, policy, occurred_at, units)
        JOIN usage_units AS open
          ON open.account_id = told.account_id
         AND open.policy = told.policy
         AND open.window_start <= told.occurred_at
         AND open.window_end > told.occurred_at
        WHERE told.units > 0
        GROUP BY open.account_id, open.kind, open.window_end
    ) AS added
    WHERE counter.account_id = added.account_id AND counter.kind = added.kind AND counter.window_end = added.window_end;
END
$$;

-- Writes events once (by id), adds their costs to the account's counters, and to casts.cost_cents by the statement of
-- the operator ($1 text[]: cast ids, $2 numeric[]: cents). Late casts are charges that an earlier call could not write
-- because casts was locked. Gives the absolute use of every counter of the accounts named that is open at the oldest
-- event or later, also for events that were there before: who replays must learn the same.
--
-- Events with terms (a free tier, an idempotency key) cost what castgate_settle_terms says once the account is locked; the
-- costs given are what they cost without. What is used of free tiers comes back among the counters, in units.
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
SET enable_hashjoin = off
SET enable_mergejoin = off
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
        SELECT event.account_id, timestamptz '9999-12-31 00:00:00+00', 'total', 'UTC', 1, timestamptz 'epoch',
               sum(event.cost), sum(event.calls)
        FROM unnest(new_accounts, new_costs, new_calls) AS event(account_id, cost, calls)
        GROUP BY event.account_id
        ORDER BY event.account_id
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
              AND counter.window_end = timestamptz '9999-12-31 00:00:00+00'
              AND counter.period = 'total' AND counter.time_zone = 'UTC' AND counter.week_start = 1;
            new_accounts := new_accounts || terms.accounts;
            new_times := new_times || terms.times;
            new_costs := new_costs || terms.costs;
            new_calls := new_calls || array_fill(0::bigint, ARRAY[cardinality(terms.accounts)]);
        END IF;

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
         AND counter.window_end > oldest;
    END IF;
END
$$;

-- What calls under way may come to in a free tier that has counted `used` units and of whose window `limit_units` are free, if
-- they hold `held` units at `amount` microcents for `per` units: none of it can be said of a call by itself, as whose units
-- are free is seen when its event is written.
CREATE OR REPLACE FUNCTION castgate_reserve(used bigint, held bigint, limit_units bigint, amount bigint, per bigint)
RETURNS bigint
LANGUAGE sql IMMUTABLE
AS $$
    SELECT least(
        div(greatest(0, least(held, used::numeric + held - limit_units)) * amount + per - 1, per), 9007199254740991
    )::bigint
$$;

-- The free tiers in which calls of an account are under way, with what they hold.
CREATE OR REPLACE FUNCTION castgate_reserves(
    asked_account text, OUT kind text, OUT starts timestamptz, OUT units bigint, OUT reserve bigint
) RETURNS SETOF record
LANGUAGE sql STABLE
AS $$
    SELECT tier.kind, tier.starts, tier.units,
           castgate_reserve(
               castgate_used_units(asked_account, tier.policy, tier.kind, tier.starts, tier.ends),
               tier.units, tier.free_limit, tier.dearest[1], tier.dearest[2]
           )
    FROM (
        SELECT hold.free_kind AS kind, min(hold.policy) AS policy,
               timestamptz 'epoch' + hold.free_start_ms * interval '1 millisecond' AS starts,
               timestamptz 'epoch' + hold.free_end_ms * interval '1 millisecond' AS ends,
               sum(hold.units)::bigint AS units, min(hold.free_limit) AS free_limit,
               ARRAY[
                   (array_agg(hold.amount_microcents ORDER BY hold.amount_microcents::numeric / hold.units DESC))[1],
                   (array_agg(hold.units ORDER BY hold.amount_microcents::numeric / hold.units DESC))[1]
               ] AS dearest
        FROM usage_holds AS hold
        WHERE hold.account_id = asked_account AND hold.free_kind IS NOT NULL AND hold.units > 0
        GROUP BY hold.free_kind, hold.free_start_ms, hold.free_end_ms
    ) AS tier
$$;

-- What an account holds by what Postgres knows.
CREATE OR REPLACE FUNCTION castgate_held(asked_account text) RETURNS bigint
LANGUAGE sql STABLE
AS $$
    SELECT (
        coalesce((SELECT sum(hold.amount_microcents) FROM usage_holds AS hold
                  WHERE hold.account_id = asked_account AND hold.free_kind IS NULL), 0)
        + coalesce((SELECT sum(tier.reserve) FROM castgate_reserves(asked_account) AS tier), 0)
    )::bigint
$$;

-- Decides calls in the order given. The account's total is locked as in 0006_usage_functions.sql, totals in order of
-- account: whoever posts an event changes its counters and takes away its hold in one transaction that has this lock, so what
-- is read here after the lock has each call in exactly one of the two.
--
-- An entry is an account at a facts version; window_entries says which entry a window belongs to, call_entries whose a
-- call is (places in the arrays). Outcomes as in lua/admit.lua: 0, or 1 BUDGET with the window's place within its entry
-- and what is taken, or 3 STALE with the version. A call under a free tier (free_kinds is not NULL) needs what its units
-- add to the account's reserve, see castgate_reserve; where that is nothing no budget is asked.
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

-- castgate reconcile --repair: what free tiers of accounts have counted becomes the sum of the events again; as
-- castgate_repair_usage does it, under the accounts' locks.
CREATE OR REPLACE FUNCTION castgate_repair_units(account_ids text[])
RETURNS bigint  -- counts that were wrong
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
    PERFORM FROM usage_counters AS counter
    WHERE counter.account_id = ANY(account_ids) AND counter.period = 'total'
    ORDER BY counter.account_id FOR UPDATE;
    UPDATE usage_units AS counter
    SET used_units = past.units, updated_at = now()
    FROM (
        SELECT known.account_id, known.kind, known.window_end, sums.units, known.used_units
        FROM usage_units AS known
        CROSS JOIN LATERAL (
            SELECT least(coalesce(sum(event.units), 0), 9007199254740991)::bigint AS units
            FROM usage_events AS event
            WHERE event.account_id = known.account_id AND event.policy = known.policy
              AND event.occurred_at >= known.window_start AND event.occurred_at < known.window_end
        ) AS sums
        WHERE known.account_id = ANY(account_ids)
          -- Of a window that begins before that, events are gone: its count is all that is known.
          AND known.window_start >= ALL (SELECT until FROM usage_months_dropped)
    ) AS past
    WHERE counter.account_id = past.account_id AND counter.kind = past.kind AND counter.window_end = past.window_end
      AND past.units <> past.used_units;
    GET DIAGNOSTICS repaired = ROW_COUNT;
    RETURN repaired;
END
$$;

-- As before; the cast of a repeat costs what its first call cost.
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
    WHERE told.cast_id IS NOT NULL AND event.repeat_of IS NULL;
END
$$;

COMMIT;
