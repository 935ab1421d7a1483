BEGIN;
ALTER TABLE IF EXISTS billing_accounts DROP COLUMN IF EXISTS customer_attempt;
ALTER TABLE IF EXISTS billing_accounts DROP COLUMN IF EXISTS plan_until;
DROP TABLE IF EXISTS stripe_sync;
DROP TABLE IF EXISTS stripe_subscriptions;
DROP TABLE IF EXISTS stripe_events;
COMMIT;
