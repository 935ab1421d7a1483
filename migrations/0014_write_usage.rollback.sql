-- Workers of this version cannot write usage afterwards: first install the earlier one.
BEGIN;

DROP FUNCTION IF EXISTS castgate_write_usage(
    uuid[], text[], text[], bigint[], bigint[], smallint[], text[], text[], text[], text, text[], bigint[]
);
ALTER TABLE IF EXISTS usage_counters SET (fillfactor = 70);

COMMIT;
