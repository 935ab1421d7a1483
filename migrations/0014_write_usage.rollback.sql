-- Workers of this version cannot write usage afterwards: first install the earlier one.
BEGIN;

DROP FUNCTION IF EXISTS castgate_write_usage(
    uuid[], text[], text[], bigint[], bigint[], smallint[], text[], text[], text[], text, text[], bigint[]
);
DO $$
BEGIN
    IF to_regproc('castgate_record_usage') IS NOT NULL THEN
        ALTER FUNCTION castgate_record_usage RESET plan_cache_mode;
    END IF;
END $$;
ALTER TABLE IF EXISTS usage_counters SET (fillfactor = 70);

COMMIT;
