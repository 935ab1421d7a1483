BEGIN;

DO $$
BEGIN
    IF to_regclass('casts') IS NOT NULL THEN
        ALTER TABLE casts DROP COLUMN IF EXISTS cost_cents;
    END IF;
END $$;

DROP TABLE IF EXISTS usage_counters;
DROP TABLE IF EXISTS budgets;
DROP TABLE IF EXISTS billing_accounts;

COMMIT;
