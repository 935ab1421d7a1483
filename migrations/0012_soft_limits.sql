-- Soft limits: which thresholds of which budget windows were reached and announced (each once, whoever finds out), what of
-- that an operator's webhook has still to be told, and how far the search for what nobody noticed has come.
BEGIN;

-- The key is what is announced once. The id is made from it, so that a database that comes back from a backup announces
-- under the same ids, and receivers know them.
CREATE TABLE soft_limit_announcements (
    account_id           text COLLATE "C" NOT NULL,
    window_end           timestamptz NOT NULL,
    period               text COLLATE "C" NOT NULL,
    time_zone            text COLLATE "C" NOT NULL,
    week_start           smallint NOT NULL,
    threshold            text COLLATE "C" NOT NULL,  -- percent of the limit, or soft: the budget's own soft limit
    id                   text COLLATE "C" NOT NULL UNIQUE,
    window_start         timestamptz NOT NULL,
    plan                 text NOT NULL,              -- this and the amounts as they were when it was announced
    threshold_microcents bigint NOT NULL,
    limit_microcents     bigint NOT NULL,
    used_microcents      bigint NOT NULL,
    announced_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, window_end, period, time_zone, week_start, threshold)
);

CREATE TABLE webhook_outbox (
    id          text COLLATE "C" PRIMARY KEY REFERENCES soft_limit_announcements (id) ON DELETE CASCADE,
    state       text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'dead')),
    attempts    integer NOT NULL DEFAULT 0,
    queued_at   timestamptz NOT NULL DEFAULT now(),
    due_at      timestamptz NOT NULL DEFAULT now(),  -- while somebody delivers it: when the lease is over
    last_error  text,
    finished_at timestamptz
);

CREATE INDEX webhook_outbox_due ON webhook_outbox (due_at) WHERE state = 'waiting';

-- At most one row: the account after which the search goes on, and until when that is somebody's.
CREATE TABLE soft_limit_sweep (
    one          boolean PRIMARY KEY DEFAULT true CHECK (one),
    after        text COLLATE "C" NOT NULL DEFAULT '',
    leased_until timestamptz NOT NULL
);

COMMIT;
