-- Workers of this version cannot write usage afterwards: first install the earlier one. castgate_charge_casts stays as it is: what
-- it does is what it did before.
BEGIN;

DROP FUNCTION IF EXISTS castgate_write_batch(
    uuid[], text[], text[], bigint[], bigint[], smallint[], text[], text[], text[], text, text[], bigint[], integer
);

COMMIT;
