-- The ledger: one row for each call that was charged, written once whoever writes it and however often.
BEGIN;

CREATE TABLE usage_events (
    id                uuid PRIMARY KEY,           -- UUIDv7, made by the gateway when the hold is taken
    account_id        text COLLATE "C" NOT NULL,
    policy            text NOT NULL,
    occurred_at       timestamptz NOT NULL,       -- when the call was admitted, by Redis' clock
    cost_microcents   bigint NOT NULL CHECK (cost_microcents >= 0),
    upstream_status   smallint NOT NULL,          -- 0: the upstream never answered
    outcome           text NOT NULL CHECK (outcome IN ('posted', 'expired')),
    cast_id           text,                       -- the cast's id in Phase 1, where the answer told it
    request_id        text,
    recorded_at       timestamptz NOT NULL DEFAULT now()
);

-- Sums over a window (a new budget in mid-month, GET /v1/usage) are answered from this index alone.
CREATE INDEX usage_events_account_time ON usage_events (account_id, occurred_at) INCLUDE (cost_microcents, policy);

COMMIT;
