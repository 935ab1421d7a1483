-- Every statement that the gateway sends to Postgres, by name; gateway/database.py reads this file once.
-- A block begins with "-- name: <name>"; the comment below the name says what the statement is for. Parameters are $1, $2 …
-- What writes usage is in migrations/0006_usage_functions.sql; here are the calls. Phase 1's tables are not named in
-- this file: how to read and charge them is the operator's SQL, in config.yaml.

-- name: load_facts
-- Plan, facts version and own budgets of accounts ($1 text[]), all of one snapshot: budgets are never newer than the
-- version they are read with. Accounts without a row in billing_accounts have version 0. A plan whose time is over is
-- NULL; one that will end says in how many seconds.
SELECT asked.account_id, coalesce(billing.facts_version, 0) AS facts_version,
       CASE WHEN billing.plan_until <= now() THEN NULL ELSE billing.plan END AS plan,
       CASE WHEN billing.plan_until > now() THEN extract(epoch FROM billing.plan_until - now())::float8 END AS plan_left_s,
       (SELECT json_agg(json_build_array(budget.period, budget.hard_limit_microcents, budget.time_zone, budget.week_start,
                                         budget.soft_limit_microcents))
        FROM budgets AS budget
        WHERE budget.account_id = asked.account_id) AS budgets
FROM unnest($1::text[]) AS asked(account_id)
LEFT JOIN LATERAL (
    SELECT plan, plan_until, facts_version FROM billing_accounts WHERE account_id = asked.account_id
    LIMIT 1  -- one lookup by key for each account: without it the planner may prefer to read the whole table
) AS billing ON true;

-- name: seed_usage
-- The use of counters ($1 accounts, $2 periods, $3 zones, $4 week starts, $5 and $6 start and end in ms) in the order
-- asked; those that do not exist are made, each with the sum of its events.
SELECT castgate_seed_usage($1, $2, $3, $4, $5, $6);

-- name: record_usage
-- A batch of usage events as columns ($1 to $9), the operator's statement for casts ($10) or NULL, charges of casts left over
-- from earlier batches ($11, $12), and how many events are written in one go ($13) or NULL. One row comes back, its columns
-- are described at castgate_record_usage. The events come as array literals, see usage_columns.columns_of.
SELECT * FROM castgate_write_batch(
    $1::text::uuid[], $2::text::text[], $3::text::text[], $4::text::bigint[], $5::text::bigint[],
    $6::text::smallint[], $7::text::text[], $8::text::text[], $9::text::text[], $10, $11, $12, $13
);

-- name: complete_events
-- Events ($1 ids, $2 statuses, $3 cast ids, $4 request ids) of calls that ended well, and that the ledger had already: one
-- that was charged as an expired hold learns what it was. Its cost stays: it is in the counters. Gives what the casts cost.
SELECT cast_id, cost_microcents FROM castgate_complete_events(
    $1::text::uuid[], $2::text::smallint[], $3::text::text[], $4::text::text[]
);

-- name: record_usage_of_holds
-- The same for while there are holds in Postgres: the holds of these events go in the same transaction.
WITH gone AS (
    DELETE FROM usage_holds WHERE id = ANY($1::text::uuid[])
)
SELECT * FROM castgate_write_batch(
    $1::text::uuid[], $2::text::text[], $3::text::text[], $4::text::bigint[], $5::text::bigint[],
    $6::text::smallint[], $7::text::text[], $8::text::text[], $9::text::text[], $10, $11, $12, $13
);

-- name: record_usage_on_terms
-- The same for batches in which an event has terms ($13 to $19, see castgate_settle_terms); their holds go in any case.
-- Each column says what it says of each event, see usage_events.full_columns_of.
WITH gone AS (
    DELETE FROM usage_holds WHERE id = ANY($1::text::uuid[])
)
SELECT * FROM castgate_record_usage(
    $1::text::uuid[], $2::text::text[], $3::text::text[], $4::text::bigint[], $5::text::bigint[],
    $6::text::smallint[], $7::text::text[], $8::text::text[], $9::text::text[], $10, $11, $12,
    $13::text::text[], $14::text::bigint[], $15::text::bigint[], $16::text::bigint[], $17::text::bigint[],
    $18::text::text[], $19::text::bigint[]
);

-- name: admit
-- Admission while Redis cannot decide: a batch of calls as columns; migrations/0009_usage_holds.sql says what they are.
SELECT * FROM castgate_admit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16);

-- name: admit_on_terms
-- The same for batches in which a call has terms ($17 to $23, as columns too).
SELECT * FROM castgate_admit(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23
);

-- name: billed_keys
-- Which calls ($1 accounts, $2 policies, $3 idempotency keys) have a key that is billed, and that counts for at least $4 more
-- seconds; in the order asked.
SELECT EXISTS (
           SELECT FROM billed_keys AS billed
           WHERE billed.account_id = asked.account_id AND billed.policy = asked.policy AND billed.key = asked.key
             AND billed.expires_at > now() + make_interval(secs => $4)
       ) AS is_billed
FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS asked(account_id, policy, key, place)
ORDER BY asked.place;

-- name: forget_keys
-- Deletes at most $2 idempotency keys whose life has been over for $1 seconds; several gateways may.
WITH over AS (
    SELECT account_id, policy, key FROM billed_keys
    WHERE expires_at < now() - make_interval(secs => $1)
    ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM billed_keys AS billed USING over
    WHERE billed.account_id = over.account_id AND billed.policy = over.policy AND billed.key = over.key
    RETURNING 1
)
SELECT count(*) AS forgotten FROM gone;

-- name: free_units_used
-- What free tiers have counted: $1 accounts, $2 policies, $3 kinds, $4 and $5 start and end of the window in ms, in the order
-- asked. Makes no row: what is committed now is all that is asked.
SELECT castgate_used_units(
           asked.account_id, asked.policy, asked.kind,
           timestamptz 'epoch' + asked.start_ms * interval '1 millisecond',
           timestamptz 'epoch' + asked.end_ms * interval '1 millisecond'
       ) AS used_units
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
     WITH ORDINALITY AS asked(account_id, policy, kind, start_ms, end_ms, place)
ORDER BY asked.place;

-- name: tell_holds
-- Makes the holds of a worker ($1) exactly those that it knows: $2 ids, $3 accounts, $4 amounts, $5 admitted at, ms, $6
-- policies, $8 to $14 their terms; $7 says whether it goes on to keep them here.
WITH gone AS (
    DELETE FROM usage_holds WHERE worker_id = $1 AND id <> ALL($2::uuid[])
), said AS (
    INSERT INTO gateway_workers AS known (worker_id, in_postgres) VALUES ($1, $7)
    ON CONFLICT (worker_id) DO UPDATE SET seen_at = clock_timestamp(), in_postgres = excluded.in_postgres
)
INSERT INTO usage_holds AS hold (id, account_id, amount_microcents, admitted_at, policy, worker_id, free_kind, free_start_ms,
                                 free_end_ms, units, free_limit, key, key_life_ms)
SELECT told.id, told.account_id, told.amount, timestamptz 'epoch' + told.ms * interval '1 millisecond', told.policy, $1,
       told.free_kind, told.free_start_ms, told.free_end_ms, told.units, told.free_limit, told.key, told.key_life_ms
FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $8::text[], $9::bigint[], $10::bigint[],
            $11::bigint[], $12::bigint[], $13::text[], $14::bigint[])
     AS told(id, account_id, amount, ms, policy, free_kind, free_start_ms, free_end_ms, units, free_limit, key, key_life_ms)
ON CONFLICT (id) DO UPDATE SET amount_microcents = excluded.amount_microcents, units = excluded.units;

-- name: forget_holds
-- Holds ($1 uuid[]) that are over.
DELETE FROM usage_holds WHERE id = ANY($1::uuid[]);

-- name: held_by_account
-- What an account ($1) holds by what Postgres knows.
SELECT castgate_held($1);

-- name: orphaned_holds
-- At most $3 holds of workers that were not seen for $2 seconds, other than $1.
SELECT replace(hold.id::text, '-', '') AS id, account_id, amount_microcents, (extract(epoch FROM admitted_at) * 1000)::bigint AS admitted_ms, policy,
       free_kind, free_start_ms, free_end_ms, units, free_limit, key, key_life_ms
FROM usage_holds AS hold
WHERE worker_id <> $1 AND NOT EXISTS (
    SELECT FROM gateway_workers AS worker
    WHERE worker.worker_id = hold.worker_id AND worker.seen_at > now() - make_interval(secs => $2)
) AND admitted_at < now() - make_interval(secs => $2)
LIMIT $3;

-- name: workers_living
-- Says that a worker ($1) lives, and gives all that said so in the last $2 seconds; one second is not worth a write.
WITH said AS (
    INSERT INTO gateway_workers AS known (worker_id) VALUES ($1)
    ON CONFLICT (worker_id) DO UPDATE SET seen_at = clock_timestamp()
    WHERE known.seen_at < clock_timestamp() - interval '1 second'
)
SELECT worker_id FROM gateway_workers WHERE seen_at > clock_timestamp() - make_interval(secs => $2)
UNION SELECT $1;

-- name: all_told
-- Whether all workers seen in the last $2 seconds, $1 apart, have what their calls hold in usage_holds.
SELECT NOT EXISTS (
    SELECT FROM gateway_workers
    WHERE worker_id <> $1 AND NOT in_postgres AND seen_at > clock_timestamp() - make_interval(secs => $2)
);

-- name: worker_leaves
-- A worker ($1) has ended in good order; those not seen for a day are forgotten with it.
DELETE FROM gateway_workers WHERE worker_id = $1 OR seen_at < now() - interval '1 day';

-- name: budgets_of_account
-- Hosted endpoints: an account's plan and own budgets ($1 account), of one snapshot. At least one row comes back; where
-- there is no budget its period is NULL.
SELECT CASE WHEN billing.plan_until <= now() THEN NULL ELSE billing.plan END AS plan, budget.period, budget.hard_limit_microcents, budget.soft_limit_microcents, budget.time_zone,
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

-- name: billing_lock_timeout
-- Billing: how long this transaction waits for a row that another one has locked.
SET LOCAL lock_timeout = '1s';

-- name: stripe_account
-- Billing: whose an event is: of the subscription ($1), else of the customer ($2), else of the account that the gateway
-- once wrote into the object's metadata ($3); no row where nobody's.
SELECT account_id FROM (
    SELECT 1 AS place, account_id FROM stripe_subscriptions WHERE id = $1
    UNION ALL SELECT 2, account_id FROM billing_accounts WHERE stripe_customer_id = $2
    UNION ALL SELECT 3, $3 WHERE $3::text IS NOT NULL
) AS found
ORDER BY place LIMIT 1;

-- name: stripe_event_insert
-- Billing: an event ($1 id, $2 type, $3 created, $4 account, $5 subscription, $6 status it tells); no row where it was
-- handled before. Waits for another transaction that is handling it.
INSERT INTO stripe_events (id, type, created_s, account_id, subscription_id, status)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: stripe_event_account
-- Billing: account and facts version of an event ($1) that was handled before; the account's, not those of its time.
SELECT account_id, billing.facts_version
FROM stripe_events AS event JOIN billing_accounts AS billing USING (account_id)
WHERE event.id = $1;

-- name: stripe_events_unknown
-- Billing: which of the events ($1 text[]) were never handled.
SELECT asked.id FROM unnest($1::text[]) AS asked(id)
WHERE NOT EXISTS (SELECT FROM stripe_events AS event WHERE event.id = asked.id);

-- name: billing_account_lock
-- Billing: the row of an account ($1), made where there was none, and locked: all that changes its billing goes one by one.
INSERT INTO billing_accounts AS billing (account_id) VALUES ($1)
ON CONFLICT (account_id) DO UPDATE SET updated_at = billing.updated_at
RETURNING stripe_customer_id, stripe_subscription_id, plan, status, facts_version, plan_until, customer_attempt;

-- name: stripe_subscriptions_of
-- Billing: the subscriptions of an account ($1). past_due_s is when the first payment failed since one last succeeded.
SELECT id, customer_id, status, prices, started_s, period_start_s, period_end_s, cancels, event_created_s, revision,
       coalesce(
           (SELECT min(due.created_s) FROM stripe_events AS due
            WHERE due.subscription_id = known.id AND due.status = 'past_due' AND due.created_s >= coalesce(
                (SELECT max(other.created_s) FROM stripe_events AS other
                 WHERE other.subscription_id = known.id AND other.status <> 'past_due'), 0)),
           nullif(event_created_s, 0),
           nullif(period_start_s, 0),
           started_s
       ) AS past_due_s
FROM stripe_subscriptions AS known
WHERE account_id = $1
ORDER BY id;

-- name: stripe_subscription_write
-- Billing: what is now known of a subscription ($1 id, $2 account, $3 customer, $4 status, $5 prices, $6 started, $7 and
-- $8 period, $9 cancels, $10 newest event).
INSERT INTO stripe_subscriptions AS known
    (id, account_id, customer_id, status, prices, started_s, period_start_s, period_end_s, cancels, event_created_s)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (id) DO UPDATE SET
    customer_id = coalesce(excluded.customer_id, known.customer_id), status = excluded.status, prices = excluded.prices,
    started_s = excluded.started_s, period_start_s = excluded.period_start_s, period_end_s = excluded.period_end_s,
    cancels = excluded.cancels, event_created_s = excluded.event_created_s, revision = known.revision + 1,
    updated_at = now();

-- name: billing_account_write
-- Billing: what an account's ($1) subscriptions come to ($2 customer, $3 subscription, $4 plan, $5 status, $6 until when
-- the plan is kept, seconds since 1970 or NULL). The facts version rises where anything changes, and comes back.
UPDATE billing_accounts AS billing SET
    stripe_customer_id = coalesce(billing.stripe_customer_id, $2), stripe_subscription_id = $3, plan = $4, status = $5,
    plan_until = to_timestamp($6::bigint), updated_at = now(),
    facts_version = billing.facts_version + CASE
        WHEN (billing.plan, billing.status, billing.stripe_subscription_id, billing.plan_until)
             IS DISTINCT FROM ($4, $5, $3, to_timestamp($6::bigint)) THEN 1 ELSE 0 END
WHERE account_id = $1
RETURNING facts_version;

-- name: billing_customer_link
-- Billing: the customer ($2) of an account ($1), unless it has one.
UPDATE billing_accounts SET stripe_customer_id = $2, updated_at = now()
WHERE account_id = $1 AND stripe_customer_id IS NULL;

-- name: billing_customer
-- Billing: customer of an account ($1), the number of the attempt at making one, and where its billing stands.
SELECT stripe_customer_id, customer_attempt, status, stripe_subscription_id FROM billing_accounts WHERE account_id = $1;

-- name: billing_customer_keep
-- Billing: the customer ($2) that Stripe made for an account ($1); the first one stays, and comes back.
INSERT INTO billing_accounts AS billing (account_id, stripe_customer_id) VALUES ($1, $2)
ON CONFLICT (account_id) DO UPDATE SET
    stripe_customer_id = coalesce(billing.stripe_customer_id, excluded.stripe_customer_id), updated_at = now()
RETURNING stripe_customer_id;

-- name: billing_customer_anew
-- Billing: the account's ($1) customer ($2, or NULL) cannot be used, or attempt $3 at making one has failed for good: the
-- next attempt has another idempotency key. Does nothing where somebody else was faster.
INSERT INTO billing_accounts AS billing (account_id, customer_attempt) VALUES ($1, 1)
ON CONFLICT (account_id) DO UPDATE SET
    stripe_customer_id = NULL, customer_attempt = billing.customer_attempt + 1, updated_at = now()
WHERE billing.stripe_customer_id IS NOT DISTINCT FROM $2 AND billing.customer_attempt = $3;

-- name: stripe_known_subscriptions
-- Billing: status, prices and revision of subscriptions ($1 text[]).
SELECT id, status, prices, revision FROM stripe_subscriptions WHERE id = ANY($1::text[]);

-- name: stripe_newest_event
-- Billing: when the newest event that was handled happened; NULL where none was.
SELECT max(created_s) FROM stripe_events;

-- name: stripe_sync_lease
-- Billing: the right to re-read everything, for $1 seconds; no row while somebody else has it.
INSERT INTO stripe_sync AS sync (leased_until) VALUES (now() + make_interval(secs => $1))
ON CONFLICT (one) DO UPDATE SET leased_until = excluded.leased_until WHERE sync.leased_until <= now()
RETURNING leased_until;

-- name: stripe_sync_done
-- Billing: gives the right back, but not before $1 seconds from now.
UPDATE stripe_sync SET leased_until = now() + make_interval(secs => $1);

-- name: console_near_limits
-- Console: the accounts that have used most of a limit (own budget or plan's ceiling) in a window that is open, each with
-- its nearest one: $1 to $5 are the plans' ceilings (plan, period, zone, week start, microcents), $6 the default plan, $7
-- how many. Reads every open window: for people who look, not for calls.
SELECT * FROM (SELECT DISTINCT ON (counter.account_id) counter.account_id, counter.period, counter.used_microcents,
       lowest.microcents AS limit_microcents, nullif(counter.window_end, 'infinity') AS resets_at, holder.plan
FROM usage_counters AS counter
LEFT JOIN billing_accounts AS billing USING (account_id)
CROSS JOIN LATERAL (
    SELECT CASE WHEN billing.plan_until <= now() THEN $6::text ELSE coalesce(billing.plan, $6) END AS plan
) AS holder
CROSS JOIN LATERAL (
    SELECT min(microcents) AS microcents FROM (
        SELECT own.hard_limit_microcents AS microcents FROM budgets AS own
        WHERE own.account_id = counter.account_id AND own.period = counter.period
          AND own.time_zone = counter.time_zone AND own.week_start = counter.week_start
        UNION ALL
        SELECT ceiling.microcents
        FROM unnest($1::text[], $2::text[], $3::text[], $4::smallint[], $5::bigint[])
             AS ceiling(plan, period, time_zone, week_start, microcents)
        WHERE ceiling.plan = holder.plan AND ceiling.period = counter.period
          AND ceiling.time_zone = counter.time_zone AND ceiling.week_start = counter.week_start
    ) AS limits
) AS lowest
WHERE counter.window_end > now() AND lowest.microcents > 0
ORDER BY counter.account_id, counter.used_microcents::float8 / lowest.microcents DESC
) AS nearest
ORDER BY used_microcents::float8 / limit_microcents DESC, account_id
LIMIT $7;

-- name: console_search
-- Console: accounts whose id begins with $1 (a LIKE pattern, escaped), at most $2.
SELECT account_id FROM (
    SELECT account_id FROM billing_accounts WHERE account_id LIKE $1
    UNION SELECT account_id FROM budgets WHERE account_id LIKE $1
    UNION SELECT account_id FROM usage_counters WHERE account_id LIKE $1
) AS found
ORDER BY account_id LIMIT $2;

-- name: console_account
-- Console: where an account's ($1) billing stands; one row, also for one that we have never seen.
SELECT billing.plan, billing.status, billing.plan_until, billing.stripe_customer_id, billing.stripe_subscription_id,
       coalesce(billing.facts_version, 0) AS facts_version
FROM (VALUES ($1::text)) AS asked(account_id) LEFT JOIN billing_accounts AS billing USING (account_id);

-- name: console_days
-- Console: calls and cost of an account ($1) by day (UTC), the last 30 of them.
SELECT day::date AS day, coalesce(sum(event.calls), 0)::bigint AS calls, coalesce(sum(event.microcents), 0)::bigint AS microcents
FROM generate_series(date_trunc('day', now() AT TIME ZONE 'UTC') - interval '29 days',
                     date_trunc('day', now() AT TIME ZONE 'UTC'), interval '1 day') AS day
LEFT JOIN LATERAL (
    SELECT count(*) AS calls, sum(cost_microcents) AS microcents FROM usage_events
    WHERE account_id = $1 AND occurred_at >= day AT TIME ZONE 'UTC'
      AND occurred_at < (day + interval '1 day') AT TIME ZONE 'UTC'
) AS event ON true
GROUP BY day ORDER BY day;

-- name: console_casts
-- Console: an account's ($1) newest charged calls, at most $2.
SELECT id, occurred_at, policy, cost_microcents, upstream_status, outcome, cast_id, request_id
FROM usage_events WHERE account_id = $1 ORDER BY occurred_at DESC LIMIT $2;

-- name: console_webhooks
-- Console: the newest events from Stripe that were handled, of an account ($1) or, where that is NULL, of all; at most $2.
SELECT id, type, created_s, account_id, subscription_id, status, recorded_at FROM stripe_events
WHERE $1::text IS NULL OR account_id = $1 ORDER BY created_s DESC, id LIMIT $2;

-- name: console_holds
-- Console: what calls under way hold of an account ($1) by Postgres, the oldest first, at most $2.
SELECT id, amount_microcents, (extract(epoch FROM admitted_at) * 1000)::bigint AS admitted_ms, policy, worker_id,
       count(*) OVER () AS holds, sum(amount_microcents) OVER () AS held_microcents
FROM usage_holds WHERE account_id = $1 ORDER BY admitted_at, id LIMIT $2;

-- name: audit_budget
-- Audit: an account's ($1) budget of a period ($2) as it is now, locked until the end of the transaction; no row: none.
SELECT (to_jsonb(budget) - ARRAY['account_id', 'created_at', 'updated_at'])::text AS facts
FROM budgets AS budget WHERE account_id = $1 AND period = $2 FOR UPDATE;

-- name: audit_billing
-- Audit: where an account's ($1) billing stands now; no row: nothing is known.
SELECT jsonb_build_object('plan', plan, 'status', status, 'subscription', stripe_subscription_id)::text AS facts
FROM billing_accounts WHERE account_id = $1;

-- name: audit_write
-- Audit: an entry ($1 account or NULL, $2 token, $3 address, $4 action, $5 before and $6 after in JSON); its id. Questions of
-- long ago go with it.
WITH forgotten AS (
    DELETE FROM audit_entries WHERE action = 'explained' AND at < now() - interval '90 days'
)
INSERT INTO audit_entries (account_id, token, address, action, before, after)
VALUES ($1, $2, $3, $4, $5::jsonb, $6::jsonb) RETURNING id;

-- name: audit_outcome
-- Audit: whose an entry ($1) turned out to be ($2), and what came of it ($3 before, $4 after).
UPDATE audit_entries SET account_id = coalesce(account_id, $2), before = $3::jsonb, after = $4::jsonb WHERE id = $1;

-- name: audit_entries
-- Audit: entries of an account ($1; NULL: of all) before an id ($2), the newest first, at most $3.
SELECT id, at, account_id, token, address, action, before::text AS before, after::text AS after FROM audit_entries
WHERE ($1::text IS NULL OR account_id = $1) AND id < $2 ORDER BY id DESC LIMIT $3;

-- name: stripe_event_known
-- Billing: an event ($1) that was handled before: its type, whose it was, and of which subscription.
SELECT type, account_id, subscription_id FROM stripe_events WHERE id = $1;

-- name: stripe_event_owner
-- Billing: an event ($1) that was of nobody we knew is its subscription's account's, where that is known by now.
UPDATE stripe_events AS event SET account_id = subscription.account_id
FROM stripe_subscriptions AS subscription
WHERE event.id = $1 AND event.account_id IS NULL AND subscription.id = event.subscription_id
RETURNING event.account_id;

-- name: reconcile_accounts
-- Reconcile: the next accounts after $1, at most $2, that have counters or events; one look into each index for each.
WITH RECURSIVE page(account_id, place) AS (
    SELECT $1::text COLLATE "C", 0
    UNION ALL
    SELECT (
        SELECT min(next.account_id) FROM (
            (SELECT account_id FROM usage_counters WHERE account_id > page.account_id ORDER BY account_id LIMIT 1)
            UNION ALL
            (SELECT account_id FROM usage_events WHERE account_id > page.account_id ORDER BY account_id LIMIT 1)
        ) AS next
    ), place + 1
    FROM page WHERE page.account_id IS NOT NULL AND place < $2
)
SELECT account_id FROM page WHERE account_id IS NOT NULL AND place > 0 ORDER BY place;

-- name: reconcile_counters
-- Reconcile: the counters of accounts ($1) beside the sums of their events, of one snapshot, in which they are equal. What
-- was dropped is in the totals; other windows that begin before the newest month that was dropped are left out. An account
-- with events and no total has one that says NULL. $2: whether all of them; else those whose window is open, and no totals,
-- whose sums are long. Free tiers are among them, in units.
SELECT counter.account_id, counter.period || '/' || counter.time_zone || '/' || counter.week_start AS kind,
       (extract(epoch FROM counter.window_start) * 1000)::bigint AS start_ms,
       (extract(epoch FROM counter.window_end) * 1000)::bigint AS end_ms,
       counter.window_end > now() AS is_open, counter.used_microcents AS counter_microcents,
       counter.calls AS counter_calls, past.cost + coalesce(archived.cost_microcents, 0) AS ledger_microcents,
       past.calls + coalesce(archived.calls, 0) AS ledger_calls
FROM usage_counters AS counter
CROSS JOIN LATERAL (
    SELECT coalesce(sum(event.cost_microcents), 0)::bigint AS cost, count(*) AS calls
    FROM usage_events AS event
    WHERE event.account_id = counter.account_id
      AND event.occurred_at >= counter.window_start AND event.occurred_at < counter.window_end
) AS past
LEFT JOIN LATERAL (
    SELECT cost_microcents, calls FROM usage_archived WHERE account_id = counter.account_id AND counter.period = 'total' LIMIT 1
) AS archived ON true
WHERE counter.account_id = ANY($1::text[]) AND ($2 OR (counter.window_end > now() AND counter.period <> 'total'))
  AND (counter.period = 'total' OR counter.window_start >= ALL (SELECT until FROM usage_months_dropped))
UNION ALL
SELECT asked.account_id, 'total/UTC/1', 0, (extract(epoch FROM timestamptz '9999-12-31 00:00:00+00') * 1000)::bigint,
       true, NULL, 0, past.cost + coalesce(archived.cost_microcents, 0), past.calls + coalesce(archived.calls, 0)
FROM unnest($1::text[]) AS asked(account_id)
CROSS JOIN LATERAL (
    SELECT coalesce(sum(event.cost_microcents), 0)::bigint AS cost, count(*) AS calls FROM usage_events AS event
    WHERE event.account_id = asked.account_id
) AS past
LEFT JOIN LATERAL (
    SELECT cost_microcents, calls FROM usage_archived WHERE account_id = asked.account_id LIMIT 1
) AS archived ON true
WHERE $2 AND past.calls + coalesce(archived.calls, 0) > 0 AND NOT EXISTS (
    SELECT FROM usage_counters AS counter WHERE counter.account_id = asked.account_id AND counter.period = 'total'
)
UNION ALL
SELECT tier.account_id, tier.kind, (extract(epoch FROM tier.window_start) * 1000)::bigint,
       (extract(epoch FROM tier.window_end) * 1000)::bigint, tier.window_end > now(), tier.used_units, 0, past.units, 0
FROM usage_units AS tier
CROSS JOIN LATERAL (
    SELECT least(coalesce(sum(event.units), 0), 9007199254740991)::bigint AS units FROM usage_events AS event
    WHERE event.account_id = tier.account_id AND event.policy = tier.policy
      AND event.occurred_at >= tier.window_start AND event.occurred_at < tier.window_end
) AS past
WHERE tier.account_id = ANY($1::text[]) AND ($2 OR tier.window_end > now())
  AND tier.window_start >= ALL (SELECT until FROM usage_months_dropped)
ORDER BY 1, 4, 2;

-- name: reconcile_casts
-- Reconcile: what the ledger charged for casts of accounts ($1) in the last $2 seconds; not those of the last moments, of
-- which the casts may hear yet.
SELECT account_id, cast_id, cost_microcents FROM usage_events
WHERE account_id = ANY($1::text[]) AND occurred_at > now() - make_interval(secs => $2)
  AND cast_id IS NOT NULL AND recorded_at < now() - interval '5 seconds';

-- name: recorded_events
-- Reconcile: which of the events ($1) the ledger has, and has had for a while; one lookup in the month of each.
SELECT event.id
FROM unnest($1::uuid[]) AS asked(id)
CROSS JOIN LATERAL (
    SELECT id FROM usage_events WHERE id = asked.id AND recorded_at < now() - interval '5 seconds' LIMIT 1
) AS event;

-- name: repair_units
-- Reconcile: what free tiers of accounts ($1) have counted becomes the sum of the events' units; how many were wrong.
SELECT castgate_repair_units($1);

-- name: repair_usage
-- Reconcile: the counters of accounts ($1) become the sums of their events; how many were wrong.
SELECT castgate_repair_usage($1);

-- name: repair_lock_timeout
-- Reconcile: how long a repair of casts waits for rows that Phase 1 has locked.
SET LOCAL lock_timeout = '1s';

-- name: maintain_begin
-- Maintain: waits a minute for another run, and as long as it takes for the rest; the lock goes with the transaction.
SET LOCAL statement_timeout = 0;
SET LOCAL lock_timeout = '1min';
SELECT pg_advisory_xact_lock(hashtextextended('castgate usage_events', 0));

-- name: usage_months
-- Maintain: the partitions of usage_events, the oldest first, and which of them are over before the $1 months before this
-- one (NULL: none is). The default one has no bounds.
SELECT name, castgate_usage_time(from_id) AS since, castgate_usage_time(to_id) AS until, bytes, events_about,
       coalesce(to_id <= castgate_usage_id(greatest(timestamptz 'epoch',
           (date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => $1)) AT TIME ZONE 'UTC')), false) AS is_over
FROM castgate_usage_months()
ORDER BY to_id NULLS LAST;

-- name: make_usage_months
-- Maintain: makes the partitions of this month and $1 more, moving at most $2 rows of the default one into each; the
-- columns are described at the function (migrations/0010_usage_partitions.sql).
SELECT made, moved, waiting, late, is_busy FROM castgate_make_usage_months($1, $2);

-- name: drop_usage_month
-- Maintain: drops the oldest partition that is over before the $1 months before this one; $2: it stays as a table. The
-- columns are described at the function. Before 1970 there are no ids: what is earlier would be later than all of them.
SELECT name, until, events, cost_microcents, kept FROM castgate_drop_usage_month(greatest(timestamptz 'epoch',
    (date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => $1)) AT TIME ZONE 'UTC'), $2);

-- name: late_usage
-- Maintain: how many calls came after their month was dropped, and were not counted; and what they cost.
SELECT count(*) AS calls, coalesce(sum(cost_microcents), 0)::bigint AS microcents FROM usage_events_late;

-- name: soft_limits_announce
-- Soft limits: writes down which thresholds the accounts $1 have reached in windows that are open (or were until an hour
-- ago: an event may be late) and were never announced; with $10, also for the webhook. Those new come back, smallest first:
-- whoever gets them announces them. $2 to $6 are the plans' ceilings (plan, period, zone, week start, microcents), $7 and $8
-- the plans' thresholds (plan, percent), $9 the names of all plans, the default plan first.
-- All from one snapshot of what is committed. OFFSET 0 and LIMIT 1: one look into each index for each account.
WITH ceiling AS MATERIALIZED (
    SELECT * FROM unnest($2::text[], $3::text[], $4::text[], $5::smallint[], $6::bigint[])
        AS one(plan, period, time_zone, week_start, microcents)
), share AS MATERIALIZED (
    SELECT * FROM unnest($7::text[], $8::bigint[]) AS one(plan, percent)
), reached AS (
    SELECT counter.*, holder.plan, lowest.microcents AS limit_microcents, threshold.name, threshold.microcents
    FROM (SELECT DISTINCT account_id FROM unnest($1::text[]) AS one(account_id)) AS asked
    LEFT JOIN LATERAL (
        SELECT plan FROM billing_accounts
        WHERE account_id = asked.account_id AND (plan_until > now() OR plan_until IS NULL) LIMIT 1
    ) AS billing ON true
    CROSS JOIN LATERAL (
        SELECT CASE WHEN billing.plan = ANY($9::text[]) THEN billing.plan ELSE ($9::text[])[1] END AS plan
    ) AS holder
    CROSS JOIN LATERAL (
        SELECT account_id, window_start, window_end, period, time_zone, week_start, used_microcents FROM usage_counters
        WHERE account_id = asked.account_id AND window_end > now() - interval '1 hour' AND used_microcents > 0
        OFFSET 0
    ) AS counter
    LEFT JOIN LATERAL (
        SELECT hard_limit_microcents, soft_limit_microcents FROM budgets
        WHERE account_id = asked.account_id AND period = counter.period
          AND (period = 'total' OR time_zone = counter.time_zone)
          AND (period <> 'weekly' OR week_start = counter.week_start)
        LIMIT 1
    ) AS own ON true
    CROSS JOIN LATERAL (
        SELECT least(own.hard_limit_microcents, min(ceiling.microcents)) AS microcents FROM ceiling
        WHERE ceiling.plan = holder.plan AND ceiling.period = counter.period
          AND ceiling.time_zone = counter.time_zone AND ceiling.week_start = counter.week_start
    ) AS lowest
    CROSS JOIN LATERAL (
        SELECT share.percent::text AS name, (lowest.microcents * share.percent + 99) / 100 AS microcents FROM share
        WHERE share.plan = holder.plan AND lowest.microcents > 0
        UNION ALL
        SELECT 'soft', own.soft_limit_microcents WHERE own.soft_limit_microcents IS NOT NULL
    ) AS threshold
    WHERE counter.used_microcents >= threshold.microcents
), announced AS (
    INSERT INTO soft_limit_announcements (account_id, window_end, period, time_zone, week_start, threshold, id, window_start,
                                          plan, threshold_microcents, limit_microcents, used_microcents)
    SELECT account_id, window_end, period, time_zone, week_start, name,
           'msg_' || left(encode(sha256(convert_to(concat_ws(
               '|', period, time_zone, week_start, extract(epoch FROM window_start)::bigint, name, account_id
           ), 'UTF8')), 'hex'), 32),
           window_start, plan, microcents, limit_microcents, used_microcents
    FROM reached
    -- Two gateways that find the same wait for each other in one direction only.
    ORDER BY account_id, window_end, period, time_zone, week_start, name
    ON CONFLICT DO NOTHING
    RETURNING *
), queued AS (
    INSERT INTO webhook_outbox (id) SELECT id FROM announced WHERE $10
)
SELECT * FROM announced ORDER BY account_id, window_end, threshold_microcents, threshold;

-- name: soft_limits_sweep_lease
-- Soft limits: the right to look for what was not noticed, for $1 seconds, and the account after which to go on; no row
-- while somebody else has it, or it is too early.
INSERT INTO soft_limit_sweep AS sweep (leased_until) VALUES (now() + make_interval(secs => $1))
ON CONFLICT (one) DO UPDATE SET leased_until = excluded.leased_until WHERE sweep.leased_until <= now()
RETURNING after;

-- name: soft_limits_sweep_done
-- Soft limits: the search goes on after account $1, in $2 seconds.
UPDATE soft_limit_sweep SET after = $1, leased_until = now() + make_interval(secs => $2);

-- name: soft_limits_accounts
-- Soft limits: the next accounts after $1 that have counters, at most $2; one look into the index for each.
WITH RECURSIVE page(account_id, place) AS (
    SELECT $1::text COLLATE "C", 0
    UNION ALL
    SELECT (SELECT min(account_id) FROM usage_counters WHERE account_id > page.account_id), place + 1
    FROM page WHERE page.account_id IS NOT NULL AND place < $2
)
SELECT account_id FROM page WHERE account_id IS NOT NULL AND place > 0 ORDER BY place;

-- name: soft_limits_forget
-- Soft limits: what was announced of the accounts $1 in windows that ended $2 seconds ago or earlier.
DELETE FROM soft_limit_announcements
WHERE account_id = ANY($1::text[]) AND window_end < now() - make_interval(secs => $2);

-- name: outbox_claim
-- Outbox: at most $1 messages that are due, for $2 seconds ours; who dies with one leaves it to the next.
WITH due AS (
    SELECT id FROM webhook_outbox WHERE state = 'waiting' AND due_at <= now()
    ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE webhook_outbox AS message SET attempts = attempts + 1, due_at = now() + make_interval(secs => $2)
    FROM due WHERE message.id = due.id
    RETURNING message.id, message.attempts, extract(epoch FROM now() - message.queued_at)::float8 AS age_s
)
SELECT * FROM claimed JOIN soft_limit_announcements USING (id);

-- name: outbox_delivered
-- Outbox: the receiver has message $1, whoever brought it.
UPDATE webhook_outbox SET state = 'delivered', finished_at = now(), last_error = NULL WHERE id = $1;

-- name: outbox_failed
-- Outbox: attempt $2 to deliver message $1 failed because of $3; the next one is in $4 seconds. No row where another
-- attempt has begun, or it is over.
UPDATE webhook_outbox SET due_at = now() + make_interval(secs => $4), last_error = $3
WHERE id = $1 AND attempts = $2 AND state = 'waiting'
RETURNING id;

-- name: outbox_dead
-- Outbox: attempt $2 to deliver message $1 was the last; it failed because of $3. No row where another attempt has begun.
UPDATE webhook_outbox SET state = 'dead', finished_at = now(), last_error = $3
WHERE id = $1 AND attempts = $2 AND state = 'waiting'
RETURNING id;

-- name: outbox_list
-- Outbox: for people, newest first, at most $2; those that are not delivered or, with $1, all.
SELECT message.id, message.state, message.attempts, message.last_error, told.account_id, told.period, told.threshold,
       extract(epoch FROM now() - message.queued_at)::float8 AS age_s,
       extract(epoch FROM message.due_at - now())::float8 AS due_s
FROM webhook_outbox AS message JOIN soft_limit_announcements AS told USING (id)
WHERE $1 OR message.state <> 'delivered'
ORDER BY message.queued_at DESC, message.id LIMIT $2;

-- name: outbox_retry
-- Outbox: messages $1 (NULL: all that are dead) are due now, as if they were new.
UPDATE webhook_outbox SET state = 'waiting', attempts = 0, queued_at = now(), due_at = now(), finished_at = NULL
WHERE id = ANY($1::text[]) OR ($1::text[] IS NULL AND state = 'dead')
RETURNING id;
