BEGIN;
DROP FUNCTION IF EXISTS castgate_repair_usage(text[]);
COMMIT;
