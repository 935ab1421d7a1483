-- What migrations/ add up to, to read and to make a database from at once; tests hold the two together.
-- Run with psql -f, in a database where Phase 1's tables are already (or are not to be).

BEGIN;

-- Castgate's own tables: who pays (billing_accounts), what they allow themselves (budgets), what they used
-- (usage_counters), and what each cast cost (casts.cost_cents, on Phase 1's table, where there is one).
-- Keys are compared byte by byte (COLLATE "C"): faster, and an upgrade of the system's locales cannot spoil their indexes.
CREATE TABLE billing_accounts (
    account_id             text COLLATE "C" PRIMARY KEY,
    stripe_customer_id     text UNIQUE,
    stripe_subscription_id text UNIQUE,
    plan                   text,                              -- NULL: the default plan
    status                 text NOT NULL DEFAULT 'none',      -- Stripe's subscription status, or none
    -- Rises with every change of plan or budgets; a gateway that knows an older number must read again.
    facts_version          bigint NOT NULL DEFAULT 0,
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE budgets (
    account_id            text COLLATE "C" NOT NULL,
    period                text NOT NULL CHECK (period IN ('daily', 'weekly', 'monthly', 'total')),
    hard_limit_microcents bigint NOT NULL CHECK (hard_limit_microcents >= 0),
    soft_limit_microcents bigint CHECK (soft_limit_microcents BETWEEN 0 AND hard_limit_microcents),
    time_zone             text NOT NULL DEFAULT 'UTC',
    week_start            smallint NOT NULL DEFAULT 1 CHECK (week_start BETWEEN 1 AND 7),
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, period)
);

-- The sum of usage_events in one window, kept with every write of events. The row of period 'total' always exists for
-- an account that has used anything, and its lock orders all writers of the account's other rows
-- (0006_usage_functions.sql has the protocol).
CREATE TABLE usage_counters (
    account_id      text COLLATE "C" NOT NULL,
    window_end      timestamptz NOT NULL,
    period          text COLLATE "C" NOT NULL CHECK (period IN ('daily', 'weekly', 'monthly', 'total')),
    time_zone       text COLLATE "C" NOT NULL,
    week_start      smallint NOT NULL,
    window_start    timestamptz NOT NULL,
    used_microcents bigint NOT NULL DEFAULT 0 CHECK (used_microcents >= 0),
    calls           bigint NOT NULL DEFAULT 0,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    -- window_end leads: a write touches the windows that are still open, however many closed ones there are.
    PRIMARY KEY (account_id, window_end, period, time_zone, week_start),
    CHECK (window_start < window_end)
)
-- Rows are updated in place all day and no indexed column changes. A batch may touch all rows of a page in one transaction:
-- only with room for all of them once more do these updates stay off the index.
WITH (fillfactor = 45);

DO $$
BEGIN
    IF to_regclass('casts') IS NOT NULL THEN
        ALTER TABLE casts ADD COLUMN IF NOT EXISTS cost_cents numeric(18, 6);
    END IF;
END $$;

-- The ledger: one row for each call that was charged, written once whoever writes it and however often.
-- It is cut into months by id: ids are UUIDv7 and begin with the time at which the hold was taken, so a month is a range of ids,
-- an id is unique over all of them, and a write finds its month by it. Ids of no month go to usage_events_default: no write
-- fails for want of a partition.
CREATE TABLE usage_events (
    id                uuid PRIMARY KEY,           -- UUIDv7, made by the gateway when the hold is taken
    account_id        text COLLATE "C" NOT NULL,
    policy            text NOT NULL,
    occurred_at       timestamptz NOT NULL,       -- when the call was admitted, by Redis' clock
    cost_microcents   bigint NOT NULL CHECK (cost_microcents >= 0),
    upstream_status   smallint NOT NULL,          -- 0: the upstream never answered
    outcome           text NOT NULL CHECK (outcome IN ('posted', 'expired')),
    cast_id           text,                       -- the cast's id in Phase 1, where the answer told it
    request_id        text,
    recorded_at       timestamptz NOT NULL DEFAULT now(),
    -- All NULL for a call without a free tier and a key. Units are smallest units, see gateway/policy/free_tier.py.
    units             bigint,  -- that the call counts in its free tier
    free_units        bigint,  -- of them, those that cost nothing
    repeat_of         uuid     -- the event that was billed for the same idempotency key; this one cost nothing
) PARTITION BY RANGE (id);

-- Sums over a window (a new budget in mid-month, GET /v1/usage) are answered from this index alone.
CREATE INDEX usage_events_account_time ON usage_events (account_id, occurred_at) INCLUDE (cost_microcents, policy);

CREATE TABLE usage_events_default PARTITION OF usage_events DEFAULT;

-- What is dropped stays in the sums. usage_archived has what it came to for each account; the counters of period total are
-- that and the events that are left. Other counters that begin before the newest month that was dropped are left as they
-- are: they closed long ago. An event that comes from an old spool after its month was dropped cannot be told from one that
-- was counted then: it is kept in usage_events_late, and not counted.
CREATE TABLE usage_archived (
    account_id      text COLLATE "C" PRIMARY KEY,
    cost_microcents bigint NOT NULL,
    calls           bigint NOT NULL
);

CREATE TABLE usage_months_dropped (
    until           timestamptz PRIMARY KEY,      -- events of all earlier months are dropped
    name            text NOT NULL,
    events          bigint NOT NULL,
    cost_microcents bigint NOT NULL,
    dropped_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE usage_events_late (
    id              uuid PRIMARY KEY,
    account_id      text COLLATE "C" NOT NULL,
    cost_microcents bigint NOT NULL,
    event           jsonb NOT NULL,               -- all of it
    arrived_at      timestamptz NOT NULL DEFAULT now()
);

-- The two writers of usage_counters, as functions: one round trip each, and no lock is ever held while a client is
-- slow, stopped or gone.
--
-- The protocol. An account's row of period 'total' is its lock, taken in order of account_id, always after the
-- account's new events were inserted and always before its other counters are read or written. Locks are taken in the
-- order events by id, casts, totals by account, other counters; the last are only touched under their total's lock. So
-- nobody waits in a circle. Each statement of a VOLATILE function at READ COMMITTED has its own snapshot: what runs
-- after the lock sees all that earlier holders of the lock committed. That is why the steps are statements of their own
-- and not parts of one WITH, which would all look at the snapshot from before the wait. The order of account_id is that of its
-- column and its index, COLLATE "C", whatever the database sorts by.
--
-- The settings: whoever waits longer for a lock tries again, and does not pile up here. Every table is reached by the keys
-- of a batch, so that a write costs the same however many rows there are; for tables of middling size the planner would
-- rather read all of it.

-- Makes sure that the counters asked for exist, each holding the sum of its events so far, and gives their use in the
-- order asked. Several gateways may seed the same counters at once, and while usage is being written.
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

-- What Stripe told (stripe_events), what is known of each subscription from it (stripe_subscriptions), and who re-reads
-- both at the moment (stripe_sync). An account's plan and status are worked out from its subscriptions; see
-- gateway/policy/subscriptions.py.
-- One row for each event that was handled, written in the same transaction as its effect: what stops replays.
CREATE TABLE stripe_events (
    id              text COLLATE "C" PRIMARY KEY,
    type            text NOT NULL,
    created_s       bigint NOT NULL,               -- Stripe's clock, whole seconds
    account_id      text COLLATE "C",              -- NULL: of nobody we know
    subscription_id text COLLATE "C",
    -- What the event says of the subscription: its status, or past_due and active for an invoice that was not, or was, paid.
    status          text,
    recorded_at     timestamptz NOT NULL DEFAULT now()
);

-- Since when a payment is due.
CREATE INDEX stripe_events_subscription ON stripe_events (subscription_id, created_s) WHERE status IS NOT NULL;

CREATE TABLE stripe_subscriptions (
    id              text COLLATE "C" PRIMARY KEY,
    account_id      text COLLATE "C" NOT NULL,
    customer_id     text COLLATE "C",
    status          text NOT NULL,
    prices          text[] NOT NULL,
    started_s       bigint NOT NULL,
    period_start_s  bigint NOT NULL,
    period_end_s    bigint NOT NULL,
    cancels         boolean NOT NULL DEFAULT false, -- at the end of the period
    event_created_s bigint NOT NULL,               -- of the newest event in this row; 0: no event yet
    revision        bigint NOT NULL DEFAULT 1,     -- rises with every write: who reads from Stripe sees who was faster
    updated_at      timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX stripe_subscriptions_account ON stripe_subscriptions (account_id);

-- At most one row: until when somebody may be re-reading, so that a fleet that starts does it once.
CREATE TABLE stripe_sync (
    one          boolean PRIMARY KEY DEFAULT true CHECK (one),
    leased_until timestamptz NOT NULL
);

-- Until when an unpaid plan is kept; NULL: no end is in sight.
ALTER TABLE IF EXISTS billing_accounts ADD COLUMN IF NOT EXISTS plan_until timestamptz;
-- Part of the idempotency key by which the customer is made; rises where a customer is to be made anew.
ALTER TABLE IF EXISTS billing_accounts ADD COLUMN IF NOT EXISTS customer_attempt integer NOT NULL DEFAULT 0;

-- What castgate reconcile --repair calls: counters become the sums of their events again, whatever they were.
-- By the protocol of 0006: the totals of the accounts are locked first, in order, and what is summed is summed in a snapshot
-- from after the lock. Who wrote events before us has committed them; who has not yet got the lock adds its own to what we
-- leave.
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

-- Admission by Postgres, for while Redis is away or does not know yet what it lost: what calls under way hold, and which
-- workers live. Both tables can be rebuilt by the workers, so they are not logged.
CREATE UNLOGGED TABLE usage_holds (
    id                uuid PRIMARY KEY,
    account_id        text COLLATE "C" NOT NULL,
    amount_microcents bigint NOT NULL CHECK (amount_microcents >= 0),
    admitted_at       timestamptz NOT NULL,
    policy            text NOT NULL,
    worker_id         text COLLATE "C" NOT NULL,
    -- The terms of a call under way; free_kind and key NULL: it has none.
    free_kind         text,
    free_start_ms     bigint,
    free_end_ms       bigint,
    units             bigint,
    free_limit        bigint,
    key               text,
    key_life_ms       bigint
);

CREATE INDEX usage_holds_account ON usage_holds (account_id) INCLUDE (amount_microcents);
CREATE INDEX usage_holds_worker ON usage_holds (worker_id);

CREATE UNLOGGED TABLE gateway_workers (
    worker_id   text COLLATE "C" PRIMARY KEY,
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    in_postgres boolean NOT NULL DEFAULT false  -- all that its calls hold is in usage_holds
);


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
SET enable_nestloop = on
SET enable_bitmapscan = on
SET enable_hashjoin = off
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

-- Writes the usual batch: events that are all new, of accounts that have counters, without terms. It does what
-- castgate_record_usage does, by the same protocol (0006), in three statements and without asking first whether an event is
-- there. What is not usual it undoes and leaves to castgate_record_usage, which workers of earlier versions go on calling.
--
-- Parameters and answer are castgate_record_usage's, but for two things: the events come in order of id, which is the order
-- that keeps two writers of the same events from waiting for each other; and a column that says the same of all events may say
-- it once (account, policy, time, cost, status, outcome) or not at all (no cast, no request).
CREATE OR REPLACE FUNCTION castgate_write_usage(
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
                       unnest(castgate_write_usage.occurred_ms) AS occurred_ms, unnest(costs_microcents) AS cost_microcents,
                       unnest(upstream_statuses) AS upstream_status, unnest(outcomes) AS outcome,
                       unnest(cast_ids) AS cast_id, unnest(request_ids) AS request_id
            ) AS event;
            GET DIAGNOSTICS recorded = ROW_COUNT;
            IF recorded < number THEN  -- one is late (0010)
                RAISE SQLSTATE 'CG001';
            END IF;

            -- 2. The casts, before any account is locked: Phase 1 may hold their rows.
            casts_charged := 0;
            casts_missing := 0;
            casts_refused := 0;
            IF cast_cost_sql IS NOT NULL AND (cardinality(cast_ids) > 0 OR cardinality(late_cast_ids) > 0) THEN
                SELECT array_agg(event.cast_id), array_agg(coalesce(event.cost, one_cost))
                INTO casts_late, casts_late_microcents
                FROM (
                    SELECT unnest(event_ids) AS id, unnest(cast_ids) AS cast_id, unnest(costs_microcents) AS cost
                ) AS event
                WHERE event.cast_id IS NOT NULL;
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
                               unnest(castgate_write_usage.occurred_ms) AS ms
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
        CASE WHEN one_ms IS NULL THEN castgate_write_usage.occurred_ms ELSE array_fill(one_ms, ARRAY[number]) END,
        CASE WHEN one_cost IS NULL THEN costs_microcents ELSE array_fill(one_cost, ARRAY[number]) END,
        CASE WHEN one_status IS NULL THEN upstream_statuses ELSE array_fill(one_status, ARRAY[number]) END,
        CASE WHEN one_outcome IS NULL THEN outcomes ELSE array_fill(one_outcome, ARRAY[number]) END,
        cast_ids, request_ids, cast_cost_sql, late_cast_ids, late_microcents
    );
END
$$;

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


-- The lowest id of a moment, and the moment of an id.
CREATE OR REPLACE FUNCTION castgate_usage_id(at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

CREATE OR REPLACE FUNCTION castgate_usage_time(id uuid) RETURNS timestamptz
LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT timestamptz 'epoch' + ('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint * interval '1 millisecond'
$$;

-- Whether an event goes when everything until then is dropped, and is late when it comes afterwards: the same test for both,
-- so that nothing is archived that could be counted again. Where the clock of a gateway was wrong, id and time differ: such
-- an event stays until both are old. Ids that are no UUIDv7 have no time.
CREATE OR REPLACE FUNCTION castgate_is_dropped(id uuid, occurred_at timestamptz, until timestamptz) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT id < castgate_usage_id(until) AND occurred_at < until AND substr(id::text, 15, 1) = '7'
$$;

-- What the ledger does with events that were there already (gateway/ledger.py): where one was charged as an expired hold, it
-- learns what it was. Its cost stays, which is in the counters; it comes back for the cast. A function, for its settings: by
-- what it thinks that it costs to look into each month, the planner would read all of them.
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

-- The partitions, as the catalog has them. from_id is NULL where there is no lower bound, both are where it is the default.
CREATE OR REPLACE FUNCTION castgate_usage_months()
RETURNS TABLE (name text, from_id uuid, to_id uuid, bytes bigint, events_about bigint)
LANGUAGE sql STABLE AS $$
    SELECT part.relname::text,
           substring(pg_get_expr(part.relpartbound, part.oid) FROM 'FROM \(''([-0-9a-f]+)''\)')::uuid,
           substring(pg_get_expr(part.relpartbound, part.oid) FROM 'TO \(''([-0-9a-f]+)''\)')::uuid,
           pg_total_relation_size(part.oid),
           greatest(part.reltuples, 0)::bigint
    FROM pg_inherits
    JOIN pg_class AS part ON part.oid = pg_inherits.inhrelid
    WHERE pg_inherits.inhparent = to_regclass('usage_events')
$$;

-- Makes the partitions of this month and of the next ones, and those for what waits in the default one, where at most
-- move_max rows have to be moved for a month. Costs a look into the catalog where there is nothing to do. Writers are not
-- held up; readers, and writers of rows without a month, for the moment of an ATTACH.
CREATE OR REPLACE FUNCTION castgate_make_usage_months(
    ahead       integer,
    move_max    bigint,
    OUT made    text[],
    OUT moved   bigint,
    OUT waiting bigint,   -- rows in the default partition whose months have too many of them
    OUT late    bigint,   -- rows in usage_events_late
    OUT is_busy boolean   -- somebody else is at it: nothing was done
)
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '100ms'
AS $$
DECLARE
    attempts   constant integer := 5;  -- below the time-out of a worker's statement
    this_month timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
    oldest     timestamptz := (this_month - interval '10 years') AT TIME ZONE 'UTC';  -- of ids that mean a month
    months     timestamp[];
    month      timestamp;
    lowest     uuid;
    beyond     uuid;
    part       text;
    rows_here  bigint;
BEGIN
    made := '{}';
    moved := 0;
    waiting := 0;
    is_busy := false;
    SELECT count(*) INTO late FROM usage_events_late;
    SELECT array_agg(wanted.month ORDER BY wanted.month) INTO months
    FROM (
        SELECT this_month + number * interval '1 month' FROM generate_series(0, ahead) AS number
        UNION
        SELECT date_trunc('month', castgate_usage_time(event.id) AT TIME ZONE 'UTC')
        FROM usage_events_default AS event
        WHERE event.id >= castgate_usage_id(greatest(oldest, (SELECT max(until) FROM usage_months_dropped)))
          AND event.id < castgate_usage_id((this_month + (ahead + 1) * interval '1 month') AT TIME ZONE 'UTC')
          AND substr(event.id::text, 15, 1) = '7'
    ) AS wanted(month)
    WHERE NOT EXISTS (
        SELECT FROM castgate_usage_months() AS known
        WHERE known.to_id > castgate_usage_id(wanted.month AT TIME ZONE 'UTC')
          AND (known.from_id IS NULL
               OR known.from_id < castgate_usage_id((wanted.month + interval '1 month') AT TIME ZONE 'UTC'))
    );
    IF months IS NULL THEN
        RETURN;
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('castgate usage_events', 0)) THEN
        is_busy := true;
        RETURN;
    END IF;
    FOREACH month IN ARRAY months LOOP
        part := 'usage_events_' || to_char(month, 'YYYY_MM');
        lowest := castgate_usage_id(month AT TIME ZONE 'UTC');
        beyond := castgate_usage_id((month + interval '1 month') AT TIME ZONE 'UTC');
        -- Somebody made it while we came here.
        CONTINUE WHEN EXISTS (SELECT FROM castgate_usage_months() AS known WHERE known.from_id = lowest);
        -- As ATTACH does, and in its order: the whole first, then the default one. Readers queue behind us for a tenth of a
        -- second at a time.
        FOR attempt IN 1 .. attempts LOOP
            BEGIN
                LOCK TABLE ONLY usage_events IN SHARE UPDATE EXCLUSIVE MODE;
                LOCK TABLE usage_events_default IN ACCESS EXCLUSIVE MODE;
                EXIT;
            EXCEPTION WHEN lock_not_available THEN
                IF attempt = attempts THEN
                    RAISE;
                END IF;
                PERFORM pg_sleep(0.1 + 0.2 * random());
            END;
        END LOOP;
        SELECT count(*) INTO rows_here
        FROM (SELECT FROM usage_events_default WHERE id >= lowest AND id < beyond LIMIT move_max + 1) AS counted;
        IF rows_here > move_max THEN
            waiting := waiting + rows_here;
            CONTINUE;
        END IF;
        EXECUTE format('CREATE TABLE %I (LIKE usage_events INCLUDING ALL)', part);
        EXECUTE format(
            'WITH gone AS (DELETE FROM usage_events_default WHERE id >= $1 AND id < $2 RETURNING *) '
            'INSERT INTO %I SELECT * FROM gone', part
        ) USING lowest, beyond;
        GET DIAGNOSTICS rows_here = ROW_COUNT;
        EXECUTE format('ALTER TABLE usage_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', part, lowest, beyond);
        made := made || part;
        moved := moved + rows_here;
    END LOOP;
END
$$;

-- Drops the oldest month that is over before keep_since, or leaves it as a table of its own; gives no name where there is
-- none. What it came to is added to usage_archived in the same transaction. While that is summed up nothing is written to
-- that month; afterwards everybody waits for the moment of the drop, and nobody waits long for it to begin.
CREATE OR REPLACE FUNCTION castgate_drop_usage_month(
    keep_since          timestamptz,
    keep_table          boolean,
    OUT name            text,
    OUT until           timestamptz,
    OUT events          bigint,
    OUT cost_microcents bigint,
    OUT kept            bigint    -- events that go on in the default partition: their id and their time differ
)
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '2s'
AS $$
DECLARE
    attempts constant integer := 50;
BEGIN
    IF keep_since > (date_trunc('month', now() AT TIME ZONE 'UTC') - interval '2 months') AT TIME ZONE 'UTC' THEN
        RAISE EXCEPTION 'the two months before this one are kept, and % is later than their beginning', keep_since
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('castgate usage_events', 0));
    SELECT month.name, castgate_usage_time(month.to_id) INTO name, until
    FROM castgate_usage_months() AS month
    WHERE month.to_id <= castgate_usage_id(keep_since)
    ORDER BY month.to_id
    LIMIT 1;
    IF name IS NULL THEN
        RETURN;
    END IF;

    EXECUTE format('LOCK TABLE %I IN SHARE MODE', name);
    EXECUTE format(
        'WITH sums AS ('
        '    SELECT event.account_id, sum(event.cost_microcents)::bigint AS cost, count(*) AS calls FROM %I AS event'
        '    WHERE castgate_is_dropped(event.id, event.occurred_at, $1) GROUP BY event.account_id'
        '), archived AS ('
        '    INSERT INTO usage_archived AS known (account_id, cost_microcents, calls)'
        '    SELECT account_id, cost, calls FROM sums ORDER BY account_id'
        '    ON CONFLICT (account_id) DO UPDATE SET'
        '        cost_microcents = known.cost_microcents + excluded.cost_microcents,'
        '        calls = known.calls + excluded.calls'
        ') SELECT coalesce(sum(calls), 0)::bigint, coalesce(sum(cost), 0)::bigint FROM sums', name
    ) USING until INTO events, cost_microcents;

    -- Whoever queues for the whole table makes everybody behind it wait: for a tenth of a second at a time.
    PERFORM set_config('lock_timeout', '100ms', true);
    FOR attempt IN 1 .. attempts LOOP
        BEGIN
            LOCK TABLE ONLY usage_events IN ACCESS EXCLUSIVE MODE;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF attempt = attempts THEN
                RAISE;
            END IF;
            PERFORM pg_sleep(0.1 + 0.2 * random());
        END;
    END LOOP;
    PERFORM set_config('lock_timeout', '2s', true);

    EXECUTE format('ALTER TABLE usage_events DETACH PARTITION %I', name);
    EXECUTE format(
        'INSERT INTO usage_events SELECT * FROM %I AS event WHERE NOT castgate_is_dropped(event.id, event.occurred_at, $1)',
        name
    ) USING until;
    GET DIAGNOSTICS kept = ROW_COUNT;
    IF NOT keep_table THEN
        EXECUTE format('DROP TABLE %I', name);
    END IF;
    INSERT INTO usage_months_dropped (until, name, events, cost_microcents)
    VALUES (until, name, events, cost_microcents);
END
$$;

-- Keeps what comes after its month was dropped. Only rows of no month pass here.
CREATE OR REPLACE FUNCTION castgate_keep_late_event() RETURNS trigger
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF NOT coalesce(castgate_is_dropped(NEW.id, NEW.occurred_at, (SELECT max(until) FROM usage_months_dropped)), false)
       OR EXISTS (SELECT FROM usage_events_default WHERE id = NEW.id) THEN
        RETURN NEW;
    END IF;
    INSERT INTO usage_events_late (id, account_id, cost_microcents, event)
    VALUES (NEW.id, NEW.account_id, NEW.cost_microcents, to_jsonb(NEW))
    ON CONFLICT (id) DO NOTHING;
    RETURN NULL;
END
$$;

CREATE TRIGGER usage_events_late BEFORE INSERT ON usage_events_default
    FOR EACH ROW EXECUTE FUNCTION castgate_keep_late_event();

DO $$ BEGIN PERFORM castgate_make_usage_months(3, 0); END $$;

-- What operators did by the console, and to whom: who, when, what, before and after. A change and its entry are one
-- transaction. Entries of questions (explained) are forgotten after 90 days, as scripts may ask many; changes are kept.
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

-- Soft limits: which thresholds of which budget windows were reached and announced (each once, whoever finds out), what of
-- that an operator's webhook has still to be told, and how far the search for what nobody noticed has come.
-- The key is what is announced once. The id is made from it, so that a database that comes back from a backup announces
-- under the same ids, and receivers know them.
CREATE TABLE soft_limit_announcements (
    account_id           text COLLATE "C" NOT NULL,
    window_end           timestamptz NOT NULL,
    period               text COLLATE "C" NOT NULL,
    time_zone            text COLLATE "C" NOT NULL,
    week_start           smallint NOT NULL,
    threshold            text COLLATE "C" NOT NULL,  -- percent of the limit, or soft: the budget's own soft limit
    id                   text COLLATE "C" NOT NULL UNIQUE,
    window_start         timestamptz NOT NULL,
    plan                 text NOT NULL,              -- this and the amounts as they were when it was announced
    threshold_microcents bigint NOT NULL,
    limit_microcents     bigint NOT NULL,
    used_microcents      bigint NOT NULL,
    announced_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, window_end, period, time_zone, week_start, threshold)
);

CREATE TABLE webhook_outbox (
    id          text COLLATE "C" PRIMARY KEY REFERENCES soft_limit_announcements (id) ON DELETE CASCADE,
    state       text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'dead')),
    attempts    integer NOT NULL DEFAULT 0,
    queued_at   timestamptz NOT NULL DEFAULT now(),
    due_at      timestamptz NOT NULL DEFAULT now(),  -- while somebody delivers it: when the lease is over
    last_error  text,
    finished_at timestamptz
);

CREATE INDEX webhook_outbox_due ON webhook_outbox (due_at) WHERE state = 'waiting';

-- At most one row: the account after which the search goes on, and until when that is somebody's.
CREATE TABLE soft_limit_sweep (
    one          boolean PRIMARY KEY DEFAULT true CHECK (one),
    after        text COLLATE "C" NOT NULL DEFAULT '',
    leased_until timestamptz NOT NULL
);

COMMIT;
