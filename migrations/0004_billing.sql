-- Castgate's own tables: who pays (billing_accounts), what they allow themselves (budgets), what they used
-- (usage_counters), and what each cast cost (casts.cost_cents, on Phase 1's table, where there is one).
-- Keys are compared byte by byte (COLLATE "C"): faster, and an upgrade of the system's locales cannot spoil their indexes.
BEGIN;

CREATE TABLE billing_accounts (
    account_id             text COLLATE "C" PRIMARY KEY,
    stripe_customer_id     text UNIQUE,
    stripe_subscription_id text UNIQUE,
    plan                   text,                              -- NULL: the default plan
    status                 text NOT NULL DEFAULT 'none',      -- Stripe's subscription status, or none
    -- Rises with every change of plan or budgets; a gateway that knows an older number must read again.
    facts_version          bigint NOT NULL DEFAULT 0,
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE budgets (
    account_id            text COLLATE "C" NOT NULL,
    period                text NOT NULL CHECK (period IN ('daily', 'weekly', 'monthly', 'total')),
    hard_limit_microcents bigint NOT NULL CHECK (hard_limit_microcents >= 0),
    soft_limit_microcents bigint CHECK (soft_limit_microcents BETWEEN 0 AND hard_limit_microcents),
    time_zone             text NOT NULL DEFAULT 'UTC',
    week_start            smallint NOT NULL DEFAULT 1 CHECK (week_start BETWEEN 1 AND 7),
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, period)
);

-- The sum of usage_events in one window, kept with every write of events. The row of period 'total' always exists for
-- an account that has used anything, and its lock orders all writers of the account's other rows
-- (0006_usage_functions.sql has the protocol).
CREATE TABLE usage_counters (
    account_id      text COLLATE "C" NOT NULL,
    window_end      timestamptz NOT NULL,
    period          text COLLATE "C" NOT NULL CHECK (period IN ('daily', 'weekly', 'monthly', 'total')),
    time_zone       text COLLATE "C" NOT NULL,
    week_start      smallint NOT NULL,
    window_start    timestamptz NOT NULL,
    used_microcents bigint NOT NULL DEFAULT 0 CHECK (used_microcents >= 0),
    calls           bigint NOT NULL DEFAULT 0,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    -- window_end leads: a write touches the windows that are still open, however many closed ones there are.
    PRIMARY KEY (account_id, window_end, period, time_zone, week_start),
    CHECK (window_start < window_end)
)
-- Rows are updated in place all day and no indexed column changes: room in the page keeps these updates off the index.
WITH (fillfactor = 70);

DO $$
BEGIN
    IF to_regclass('casts') IS NOT NULL THEN
        ALTER TABLE casts ADD COLUMN IF NOT EXISTS cost_cents numeric(18, 6);
    END IF;
END $$;

COMMIT;
