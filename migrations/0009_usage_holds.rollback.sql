BEGIN;
DROP FUNCTION IF EXISTS castgate_admit(
    text, uuid[], text[], bigint[], integer[], text[], text[], smallint[], bigint[], bigint[], bigint[], integer[], uuid[],
    bigint[], text[], boolean[]
);
DROP TABLE IF EXISTS gateway_workers;
DROP TABLE IF EXISTS usage_holds;
COMMIT;
