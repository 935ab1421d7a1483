-- Months that were dropped do not come back; castgate reconcile will call the totals of their accounts drift.
BEGIN;
DO $$
DECLARE
    of_plain name;
    granted  record;
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = to_regclass('usage_events')) = 'p' THEN
        CREATE TABLE usage_events_plain (
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
        );
        INSERT INTO usage_events_plain (id, account_id, policy, occurred_at, cost_microcents, upstream_status, outcome,
                                        cast_id, request_id, recorded_at)
        SELECT id, account_id, policy, occurred_at, cost_microcents, upstream_status, outcome, cast_id, request_id,
               recorded_at
        FROM usage_events ORDER BY id;
        FOR granted IN
            SELECT acl.privilege_type, CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END AS grantee
            FROM pg_class, aclexplode(relacl) AS acl
            WHERE pg_class.oid = to_regclass('usage_events') AND acl.grantee <> relowner
        LOOP
            EXECUTE format('GRANT %s ON usage_events_plain TO %s', granted.privilege_type, granted.grantee);
        END LOOP;
        DROP TABLE usage_events;
        ALTER TABLE usage_events_plain RENAME TO usage_events;
        ALTER INDEX usage_events_plain_pkey RENAME TO usage_events_pkey;
        CREATE INDEX usage_events_account_time ON usage_events (account_id, occurred_at) INCLUDE (cost_microcents, policy);
        -- Before 18, NOT NULL has no name.
        FOR of_plain IN
            SELECT conname FROM pg_constraint WHERE conrelid = to_regclass('usage_events') AND contype = 'n'
        LOOP
            EXECUTE format('ALTER TABLE usage_events RENAME CONSTRAINT %I TO %I', of_plain, replace(of_plain, '_plain', ''));
        END LOOP;
    END IF;
END $$;

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
        SELECT known.account_id, known.window_end, known.period, known.time_zone, known.week_start, sums.cost, sums.calls
        FROM usage_counters AS known
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(event.cost_microcents), 0)::bigint AS cost, count(*) AS calls
            FROM usage_events AS event
            WHERE event.account_id = known.account_id
              AND event.occurred_at >= known.window_start AND event.occurred_at < known.window_end
        ) AS sums
        WHERE known.account_id = ANY(account_ids)
          AND (known.used_microcents, known.calls) IS DISTINCT FROM (sums.cost, sums.calls)
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

DROP FUNCTION IF EXISTS castgate_complete_events(uuid[], smallint[], text[], text[]);
DROP FUNCTION IF EXISTS castgate_keep_late_event();
DROP FUNCTION IF EXISTS castgate_drop_usage_month(timestamptz, boolean);
DROP FUNCTION IF EXISTS castgate_make_usage_months(integer, bigint);
DROP FUNCTION IF EXISTS castgate_usage_months();
DROP FUNCTION IF EXISTS castgate_is_dropped(uuid, timestamptz, timestamptz);
DROP FUNCTION IF EXISTS castgate_usage_time(uuid);
DROP FUNCTION IF EXISTS castgate_usage_id(timestamptz);
DROP TABLE IF EXISTS usage_events_late;
DROP TABLE IF EXISTS usage_months_dropped;
DROP TABLE IF EXISTS usage_archived;
COMMIT;
