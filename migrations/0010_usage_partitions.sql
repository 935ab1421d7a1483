-- usage_events becomes a table of months, so that it stays quick however long it is kept, and old months can be dropped in
-- a moment (castgate maintain). docs/decisions/0041 says why it is cut by id: ids are UUIDv7 and begin with the time at which
-- the hold was taken, so a month is a range of ids, an id is unique over all of them, and a write finds its month by it.
-- Ids of no month go to usage_events_default: no write fails for want of a partition.
--
-- What is dropped stays in the sums. usage_archived has what it came to for each account; the counters of period total are
-- that and the events that are left. Other counters that begin before the newest month that was dropped are left as they
-- are: they closed long ago. An event that comes from an old spool after its month was dropped cannot be told from one that
-- was counted then: it is kept in usage_events_late, and not counted.
BEGIN;

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
    WHERE told.cast_id IS NOT NULL;
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

-- What castgate reconcile --repair calls (0008_repair_usage.sql says how it goes about it). Here it learns of months that
-- were dropped; it asks for them in the statement that sums, so that both are of one snapshot.
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
    SELECT DISTINCT asked.account_id, timestamptz '9999-12-31 00:00:00+00', 'total', 'UTC', 1, timestamptz 'epoch'
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

-- The table itself. What there is becomes the first partition as it is, until the end of this month: nothing is copied.
DO $$
DECLARE
    next_month timestamp := date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month';
    beyond     uuid := castgate_usage_id(next_month AT TIME ZONE 'UTC');
    before     text := 'usage_events_before_' || to_char(next_month, 'YYYY_MM');
    is_empty   boolean;
    of_old     name;
    granted    record;
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = to_regclass('usage_events')) = 'p' THEN
        RETURN;  -- castgate migrate tries files that were run by hand
    END IF;
    EXECUTE format('ALTER TABLE usage_events RENAME TO %I', before);
    EXECUTE format('ALTER INDEX usage_events_pkey RENAME TO %I', before || '_pkey');
    EXECUTE format('ALTER INDEX usage_events_account_time RENAME TO %I', before || '_account_time');
    -- What is new is to have the names. (Before 18, NOT NULL has none.)
    FOR of_old IN SELECT conname FROM pg_constraint WHERE conrelid = to_regclass(before) AND contype = 'n' LOOP
        EXECUTE format('ALTER TABLE %I RENAME CONSTRAINT %I TO %I', before, of_old, before || substr(of_old, 13));
    END LOOP;

    CREATE TABLE usage_events (
        id                uuid PRIMARY KEY,
        account_id        text COLLATE "C" NOT NULL,
        policy            text NOT NULL,
        occurred_at       timestamptz NOT NULL,
        cost_microcents   bigint NOT NULL CONSTRAINT usage_events_cost_microcents_check CHECK (cost_microcents >= 0),
        upstream_status   smallint NOT NULL,
        outcome           text NOT NULL CONSTRAINT usage_events_outcome_check CHECK (outcome IN ('posted', 'expired')),
        cast_id           text,
        request_id        text,
        recorded_at       timestamptz NOT NULL DEFAULT now()
    ) PARTITION BY RANGE (id);
    CREATE INDEX usage_events_account_time ON usage_events (account_id, occurred_at) INCLUDE (cost_microcents, policy);
    CREATE TABLE usage_events_default PARTITION OF usage_events DEFAULT;
    CREATE TRIGGER usage_events_late BEFORE INSERT ON usage_events_default
        FOR EACH ROW EXECUTE FUNCTION castgate_keep_late_event();
    -- Who was allowed something with the ledger still is.
    FOR granted IN
        SELECT acl.privilege_type, CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END AS grantee, made
        FROM pg_class, aclexplode(relacl) AS acl, unnest(ARRAY['usage_events', 'usage_events_default', 'usage_events_late',
                                                               'usage_months_dropped', 'usage_archived']) AS made
        WHERE pg_class.oid = to_regclass(before) AND acl.grantee <> relowner
    LOOP
        EXECUTE format('GRANT %s ON %I TO %s', granted.privilege_type, granted.made, granted.grantee);
    END LOOP;

    EXECUTE format('WITH gone AS (DELETE FROM %I WHERE id >= $1 RETURNING *) '
                   'INSERT INTO usage_events_default SELECT * FROM gone', before) USING beyond;
    EXECUTE format('SELECT NOT EXISTS (SELECT FROM %I)', before) INTO is_empty;
    IF is_empty THEN
        EXECUTE format('DROP TABLE %I', before);
    ELSE
        EXECUTE format('ALTER TABLE usage_events ATTACH PARTITION %I FOR VALUES FROM (MINVALUE) TO (%L)', before, beyond);
    END IF;
    PERFORM castgate_make_usage_months(3, 9223372036854775806);
END $$;

COMMIT;
