-- Phase 1: every cast that was made.
BEGIN;

CREATE TABLE IF NOT EXISTS casts (
    id         uuid PRIMARY KEY,
    user_id    uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    input      text NOT NULL,
    status     text NOT NULL,
    result     text,
    elapsed_ms integer NOT NULL CHECK (elapsed_ms >= 0),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS casts_user_time ON casts (user_id, created_at DESC);

COMMIT;
