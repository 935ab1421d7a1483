-- What Stripe told (stripe_events), what is known of each subscription from it (stripe_subscriptions), and who re-reads
-- both at the moment (stripe_sync). An account's plan and status are worked out from its subscriptions; see
-- gateway/policy/subscriptions.py.
BEGIN;

-- One row for each event that was handled, written in the same transaction as its effect: what stops replays.
CREATE TABLE stripe_events (
    id              text COLLATE "C" PRIMARY KEY,
    type            text NOT NULL,
    created_s       bigint NOT NULL,               -- Stripe's clock, whole seconds
    account_id      text COLLATE "C",              -- NULL: of nobody we know
    subscription_id text COLLATE "C",
    -- What the event says of the subscription: its status, or past_due and active for an invoice that was not, or was, paid.
    status          text,
    recorded_at     timestamptz NOT NULL DEFAULT now()
);

-- Since when a payment is due.
CREATE INDEX stripe_events_subscription ON stripe_events (subscription_id, created_s) WHERE status IS NOT NULL;

CREATE TABLE stripe_subscriptions (
    id              text COLLATE "C" PRIMARY KEY,
    account_id      text COLLATE "C" NOT NULL,
    customer_id     text COLLATE "C",
    status          text NOT NULL,
    prices          text[] NOT NULL,
    started_s       bigint NOT NULL,
    period_start_s  bigint NOT NULL,
    period_end_s    bigint NOT NULL,
    cancels         boolean NOT NULL DEFAULT false, -- at the end of the period
    event_created_s bigint NOT NULL,               -- of the newest event in this row; 0: no event yet
    revision        bigint NOT NULL DEFAULT 1,     -- rises with every write: who reads from Stripe sees who was faster
    updated_at      timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX stripe_subscriptions_account ON stripe_subscriptions (account_id);

-- At most one row: until when somebody may be re-reading, so that a fleet that starts does it once.
CREATE TABLE stripe_sync (
    one          boolean PRIMARY KEY DEFAULT true CHECK (one),
    leased_until timestamptz NOT NULL
);

-- Until when an unpaid plan is kept; NULL: no end is in sight.
ALTER TABLE IF EXISTS billing_accounts ADD COLUMN IF NOT EXISTS plan_until timestamptz;
-- Part of the idempotency key by which the customer is made; rises where a customer is to be made anew.
ALTER TABLE IF EXISTS billing_accounts ADD COLUMN IF NOT EXISTS customer_attempt integer NOT NULL DEFAULT 0;

COMMIT;
