-- What castgate reconcile --repair calls: counters become the sums of their events again, whatever they were.
-- By the protocol of 0006: the totals of the accounts are locked first, in order, and what is summed is summed in a snapshot
-- from after the lock. Who wrote events before us has committed them; who has not yet got the lock adds its own to what we
-- leave.
BEGIN;

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

COMMIT;
