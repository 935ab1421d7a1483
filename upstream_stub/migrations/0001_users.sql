-- Phase 1: who has an account.
BEGIN;

CREATE TABLE IF NOT EXISTS users (
    id            uuid PRIMARY KEY,
    email         text NOT NULL UNIQUE CHECK (email = lower(email)),
    password_hash text NOT NULL,                       -- scrypt$n$r$p$salt$hash, the last two in hex
    created_at    timestamptz NOT NULL DEFAULT now()
);

COMMIT;
