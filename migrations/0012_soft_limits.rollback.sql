BEGIN;
DROP TABLE IF EXISTS soft_limit_sweep;
DROP TABLE IF EXISTS webhook_outbox;
DROP TABLE IF EXISTS soft_limit_announcements;
COMMIT;
