-- Every statement that the gateway sends to Postgres, by name; gateway/database.py reads this file once.
-- A block begins with "-- name: <name>"; the comment below the name says what the statement is for. Parameters are $1, $2 …
-- What writes usage is in migrations/0006_usage_functions.sql; here are the calls. Phase 1's tables are not named in
-- this file: how to read and charge them is the operator's SQL, in config.yaml.

-- name: load_facts
-- Plan, facts version and own budgets of accounts ($1 text[]), all of one snapshot: budgets are never newer than the
-- version they are read with. Accounts without a row in billing_accounts have version 0.
SELECT asked.account_id, billing.plan, coalesce(billing.facts_version, 0) AS facts_version,
       (SELECT json_agg(json_build_array(budget.period, budget.hard_limit_microcents, budget.time_zone, budget.week_start))
        FROM budgets AS budget
        WHERE budget.account_id = asked.account_id) AS budgets
FROM unnest($1::text[]) AS asked(account_id)
LEFT JOIN LATERAL (
    SELECT plan, facts_version FROM billing_accounts WHERE account_id = asked.account_id
    LIMIT 1  -- one lookup by key for each account: without it the planner may prefer to read the whole table
) AS billing ON true;

-- name: seed_usage
-- The use of counters ($1 accounts, $2 periods, $3 zones, $4 week starts, $5 and $6 start and end in ms) in the order
-- asked; those that do not exist are made, each with the sum of its events.
SELECT castgate_seed_usage($1, $2, $3, $4, $5, $6);

-- name: record_usage
-- A batch of usage events as columns ($1 to $9), the operator's statement for casts ($10) or NULL, and charges of
-- casts left over from earlier batches ($11, $12). One row comes back, its columns are described at the function.
-- The events come as array literals, see ledger.columns_of.
SELECT * FROM castgate_record_usage(
    $1::text::uuid[], $2::text::text[], $3::text::text[], $4::text::bigint[], $5::text::bigint[],
    $6::text::smallint[], $7::text::text[], $8::text::text[], $9::text::text[], $10, $11, $12
);

-- name: budgets_of_account
-- Hosted endpoints: an account's plan and own budgets ($1 account), of one snapshot. At least one row comes back; where
-- there is no budget its period is NULL.
SELECT billing.plan, budget.period, budget.hard_limit_microcents, budget.soft_limit_microcents, budget.time_zone,
       budget.week_start
FROM (VALUES ($1::text)) AS asked(account_id)
LEFT JOIN billing_accounts AS billing USING (account_id)
LEFT JOIN budgets AS budget USING (account_id);

-- name: budget_insert
-- Hosted endpoints: a new budget ($1 account, $2 period, $3 hard and $4 soft limit in microcents, $5 zone, $6 week
-- start) and the account's next facts version, which comes back; no row where the period has a budget already.
WITH created AS (
    INSERT INTO budgets (account_id, period, hard_limit_microcents, soft_limit_microcents, time_zone, week_start)
    VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (account_id, period) DO NOTHING
    RETURNING account_id
)
INSERT INTO billing_accounts AS billing (account_id, facts_version)
SELECT account_id, 1 FROM created
ON CONFLICT (account_id) DO UPDATE SET facts_version = billing.facts_version + 1, updated_at = now()
RETURNING facts_version;

-- name: budget_update
-- Hosted endpoints: replaces a budget; parameters and result as for budget_insert, no row where there is no budget.
WITH changed AS (
    UPDATE budgets
    SET hard_limit_microcents = $3, soft_limit_microcents = $4, time_zone = $5, week_start = $6, updated_at = now()
    WHERE account_id = $1 AND period = $2
    RETURNING account_id
)
INSERT INTO billing_accounts AS billing (account_id, facts_version)
SELECT account_id, 1 FROM changed
ON CONFLICT (account_id) DO UPDATE SET facts_version = billing.facts_version + 1, updated_at = now()
RETURNING facts_version;

-- name: budget_delete
-- Hosted endpoints: removes a budget ($1 account, $2 period); the account's next facts version, no row where there is none.
WITH removed AS (
    DELETE FROM budgets WHERE account_id = $1 AND period = $2 RETURNING account_id
)
INSERT INTO billing_accounts AS billing (account_id, facts_version)
SELECT account_id, 1 FROM removed
ON CONFLICT (account_id) DO UPDATE SET facts_version = billing.facts_version + 1, updated_at = now()
RETURNING facts_version;

-- name: used_in_windows
-- Hosted endpoints: what an account ($1) used in windows ($2 periods, $3 zones, $4 week starts, $5 starts, $6 ends), in
-- the order asked: from the window's counter, or where there is none yet from the events, without making one.
SELECT coalesce(
           (SELECT counter.used_microcents FROM usage_counters AS counter
            WHERE counter.account_id = $1 AND counter.window_end = asked.ends AND counter.period = asked.period
              AND counter.time_zone = asked.time_zone AND counter.week_start = asked.week_start),
           (SELECT sum(event.cost_microcents)::bigint FROM usage_events AS event
            WHERE event.account_id = $1 AND event.occurred_at >= asked.starts AND event.occurred_at < asked.ends),
           0
       ) AS used_microcents
FROM unnest($2::text[], $3::text[], $4::smallint[], $5::timestamptz[], $6::timestamptz[])
     WITH ORDINALITY AS asked(period, time_zone, week_start, starts, ends, position)
ORDER BY asked.position;

-- name: usage_by_day
-- Hosted endpoints: calls and cost of an account ($1) per day ($2 labels, $3 starts, $4 ends) and policy, newest day
-- first, after the row ($5 day, $6 policy) where one is given, at most $7 rows. Policies sort by code point, so that
-- pages do not depend on the database's collation.
SELECT span.day, events.policy, events.calls, events.microcents
FROM unnest($2::date[], $3::timestamptz[], $4::timestamptz[]) AS span(day, starts, ends)
CROSS JOIN LATERAL (
    SELECT event.policy COLLATE "C" AS policy, count(*) AS calls, sum(event.cost_microcents) AS microcents
    FROM usage_events AS event
    WHERE event.account_id = $1 AND event.occurred_at >= span.starts AND event.occurred_at < span.ends
    GROUP BY event.policy
) AS events
WHERE $5::date IS NULL OR span.day < $5 OR (span.day = $5 AND events.policy > $6::text COLLATE "C")
ORDER BY span.day DESC, events.policy
LIMIT $7;
