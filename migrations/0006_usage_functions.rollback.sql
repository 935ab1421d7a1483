BEGIN;
DROP FUNCTION IF EXISTS castgate_record_usage(
    uuid[], text[], text[], bigint[], bigint[], smallint[], text[], text[], text[], text, text[], bigint[]
);
DROP FUNCTION IF EXISTS castgate_seed_usage(text[], text[], text[], smallint[], bigint[], bigint[]);
COMMIT;
