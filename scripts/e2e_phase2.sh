#!/usr/bin/env bash
# The acceptance run, from outside, against any gateway that serves: API keys and rate limit as before, a low budget is
# 402, checkout is paid, its webhook makes the account active, and /metrics has counted all of it. Prints TAP version 13.
#
#   scripts/e2e_phase2.sh                     the ./dev up of this folder, unattended: it pays at the stand-in for Stripe
#   scripts/e2e_phase2.sh --demo FILE         another ./dev up: FILE is its demo.json
#   scripts/e2e_phase2.sh --base-url URL      a real deployment: it prints the page to pay at, and waits until it is paid
#
# For a real deployment the environment says: API_KEY, a key of an account that is there for tests (it is charged for as
# many casts as its plan allows in a minute, and some more); METRICS_URL, the address of /metrics, or those of several
# gateways, separated by spaces (default: BASE_URL/metrics), and ADMIN_TOKEN if they ask for one; DATABASE_URL, to read the account's status from Postgres as
# well (needs psql). PAY_TIMEOUT_S (600) is how long a person may take to pay, SETTLE_TIMEOUT_S (30) how long webhooks and
# metrics may; RATE_CASTS_MAX (1500) bounds the casts until the rate limit answers, 0 leaves it out.
#
# Exit code 0: all that was asked for holds. 1: something does not. 2: it could not be asked.
# Needs bash, curl and Python 3.
set -u -o pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# What a command may take: a gateway that hangs must not hang this. Above the gateway's own time-outs.
REQUEST_TIMEOUT_S=45
RATE_ROUND=25 # casts between two looks at the answers
BUDGET_CENTS=0.000001 # less than any call costs
SETTLE_TIMEOUT_S=${SETTLE_TIMEOUT_S:-30} # for what happens by itself: webhooks, metrics

demo=.castgate/demo.json
base_url=
while [ $# -gt 0 ]; do
    case $1 in
        --demo) demo=${2:?--demo needs a file}; shift 2 ;;
        --base-url) base_url=${2:?--base-url needs an address}; shift 2 ;;
        -h | --help)
            sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *)
            echo "e2e_phase2: there is no '$1'; see --help" >&2
            exit 2
            ;;
    esac
done

bail_out() {
    echo "Bail out! $*"
    exit 2
}

python=$here/.venv/bin/python
[ -x "$python" ] || python=$(command -v python3) || bail_out "Python 3 is needed"
command -v curl >/dev/null || bail_out "curl is needed"

work=$(mktemp -d) || bail_out "no folder for temporary files"
trap 'rm -rf "$work"' EXIT

# A value of a JSON file by the path of its keys; nothing where it is not there.
json() {
    "$python" - "$@" <<'END'
import json, sys
try:
    value = json.load(open(sys.argv[1], encoding="utf-8"))
    for key in sys.argv[2:]:
        value = value[int(key) if isinstance(value, list) else key]
except (OSError, ValueError, LookupError, TypeError):
    value = None
print("" if value is None else value if isinstance(value, str) else json.dumps(value))
END
}

# ---- who is asked, and as whom

stripe_url=
if [ -n "$base_url" ]; then
    base_url=${base_url%/}
    [ -n "${API_KEY:-}" ] || bail_out "set API_KEY to a key of an account that is there for tests"
    api_key=$API_KEY
    metrics_urls=${METRICS_URL:-$base_url/metrics}
    database_url=${DATABASE_URL:-}
    pay_timeout_s=${PAY_TIMEOUT_S:-600}
else
    [ -r "$demo" ] || bail_out "no $demo: start ./dev up here, or name its demo.json with --demo, or use --base-url"
    base_url=$(json "$demo" base_url)
    metrics_urls=$(json "$demo" admin_url)/metrics
    database_url=$(json "$demo" database_url)
    stripe_url=$(json "$demo" stripe_url)
    pay_timeout_s=${PAY_TIMEOUT_S:-$SETTLE_TIMEOUT_S}
    # An account of its own: free, unpaid, and nothing counted yet, at each run.
    (cd "$here" && "$python" -m upstream_stub.seed --database-url "$database_url" \
        --email "e2e-$$-$(date +%s)@example.com") >"$work/account" || bail_out "no account could be made"
    api_key=$(json "$work/account" api_key)
fi
rate_casts_max=${RATE_CASTS_MAX:-1500}

# ---- how to ask and tell

count=0
failures=0
# ok DESCRIPTION: the last step's outcome was as it should be. not_ok tells what was found besides.
ok() {
    count=$((count + 1))
    echo "ok $count - $1"
}
not_ok() {
    count=$((count + 1))
    failures=$((failures + 1))
    echo "not ok $count - $1"
    shift
    printf '  ---\n'
    printf '  %s\n' "$@"
    printf '  ...\n'
}
skip() {
    count=$((count + 1))
    echo "ok $count - $1 # SKIP $2"
}
# is DESCRIPTION FOUND EXPECTED
is() {
    if [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1" "expected: $3" "found: $2" "answer: $(head -c 400 "$work/body")"; fi
}

# ask METHOD PATH KEY [BODY]: sets status; the answer is in $work/body and its head in $work/head. Secrets are given to
# curl in a file: a command line is everybody's to read.
ask() {
    local method=$1 path=$2 key=$3 body=${4:-}
    : >"$work/body"
    {
        printf 'url = "%s%s"\nrequest = "%s"\n' "$base_url" "$path" "$method"
        [ -z "$key" ] || printf 'header = "Authorization: Bearer %s"\n' "$key"
        if [ -n "$body" ]; then
            printf '%s' "$body" >"$work/request"
            printf 'header = "Content-Type: application/json"\ndata-binary = "@%s"\n' "$work/request"
        fi
    } >"$work/curl"
    status=$(curl --silent --show-error --max-time "$REQUEST_TIMEOUT_S" --config "$work/curl" \
        --dump-header "$work/head" --output "$work/body" --write-out '%{http_code}' 2>"$work/curl.err") || true
    [ "$status" != 000 ] || cat "$work/curl.err" >"$work/body"
}
cast() { ask POST /v1/cast "$1" '{"input": "lumos"}'; }
field() { json "$work/body" "$@"; }
header() { tr -d '\r' <"$work/head" | sed -n "s/^$1: *//Ip" | head -n 1; }

# metric NAME [LABEL="VALUE"]: the sum of the samples, over all gateways; nothing where a gateway does not say.
metric() {
    local address
    : >"$work/metrics"
    [ -z "${ADMIN_TOKEN:-}" ] || printf 'header = "Authorization: Bearer %s"\n' "$ADMIN_TOKEN" >"$work/admin"
    for address in $metrics_urls; do
        curl --silent --fail --max-time "$REQUEST_TIMEOUT_S" ${ADMIN_TOKEN:+--config "$work/admin"} "$address" \
            >>"$work/metrics" || return 1
    done
    awk -v name="$1" -v label="${2:-}" '
        $1 ~ "^" name "([{]|$)" && (label == "" || index($1, label)) { sum += $NF }
        END { printf "%d\n", sum }' "$work/metrics"
}
# rose DESCRIPTION BEFORE NAME [LABEL]: whether the metric has risen since; waits a little, as a scrape may be cached.
rose() {
    local description=$1 before=$2 now=
    shift 2
    for _ in $(seq $((SETTLE_TIMEOUT_S * 2))); do
        if now=$(metric "$@") && [ "$now" -gt "${before:-0}" ]; then
            ok "$description"
            return
        fi
        sleep 0.5
    done
    not_ok "$description" "expected: $* above ${before:-0}" "found: ${now:-no answer}" "asked: $metrics_urls"
}

# The account's status as Postgres has it; nothing where there is no way to ask.
stored_status() {
    local account=$1 sql="SELECT status FROM billing_accounts WHERE account_id ="
    if "$python" -c 'import asyncpg' 2>/dev/null; then
        DATABASE_URL=$database_url "$python" - "$sql" "$account" <<'END'
import asyncio, os, sys
import asyncpg
async def main():
    connection = await asyncpg.connect(os.environ["DATABASE_URL"], statement_cache_size=0)
    print(await connection.fetchval(sys.argv[1] + " $1", sys.argv[2]) or "")
    await connection.close()
asyncio.run(main())
END
    elif command -v psql >/dev/null; then
        PGOPTIONS='' psql "$database_url" -AtX -v account="$account" <<<"$sql :'account'"
    fi
}

echo "TAP version 13"
echo "# gateway $base_url"

# ---- before

ask GET /v1/budgets "$api_key"
[ "$status" = 200 ] || bail_out "GET $base_url/v1/budgets said $status: $(head -c 300 "$work/body")"
account_id=$(field account_id)
plan_before=$(field plan)
echo "# account $account_id, plan $plan_before"
blocked_before=$(metric budget_block_total) || echo "# /metrics gives no answer at $metrics_urls"
limited_before=$(metric rate_limited_total)
webhooks_before=$(metric stripe_webhook_total 'result="applied"')
casts_before=$(metric spell_cast_total 'status="200"')

# ---- API keys, as ever

cast ""
is "a cast without a key is 401" "$status" 401
cast "ck_nobody_has_this_key"
is "a cast with an unknown key is 401" "$status" 401
cast "$api_key"
is "a cast with the key is 200" "$status" 200
ask POST /v1/keys "$api_key" '{"name": "e2e"}'
is "a second key is made" "$status" 201
second_key=$(field key)
second_id=$(field id)
cast "$second_key"
is "a cast with the second key is 200" "$status" 200
ask GET /v1/keys "$api_key"
grep -qF "\"$second_id\"" "$work/body" && found=listed || found=missing
is "the second key is listed" "$found" listed
ask DELETE "/v1/keys/$second_id" "$api_key"
is "the second key is deleted" "$status" 204
cast "$second_key"
is "a cast with the deleted key is 401" "$status" 401

# ---- a low budget

ask DELETE "/v1/budgets?period=daily" "$api_key" # one that an interrupted run has left
ask POST /v1/budgets "$api_key" "{\"period\": \"daily\", \"hard_limit_cents\": $BUDGET_CENTS}"
is "a budget of $BUDGET_CENTS cents a day is set" "$status" 201
cast "$api_key"
is "a cast over it is 402" "$status" 402
is "which says why" "$(field error), $(field period)" "budget_exceeded, daily"
ask DELETE "/v1/budgets?period=daily" "$api_key"
is "the budget is taken back" "$status" 204
cast "$api_key"
is "and the next cast is 200" "$status" 200

# ---- the rate limit

if [ "$rate_casts_max" = 0 ]; then
    skip "casting on and on is 429" "RATE_CASTS_MAX is 0"
else
    printf '{"input": "lumos"}' >"$work/request"
    sent=0
    limited=
    while [ -z "$limited" ] && [ "$sent" -lt "$rate_casts_max" ]; do
        rm -f "$work"/cast.*
        for number in $(seq "$RATE_ROUND"); do
            printf 'next\nurl = "%s/v1/cast"\noutput = "%s"\nheader = "Authorization: Bearer %s"\n' \
                "$base_url" "$work/cast.$number" "$api_key"
            printf 'header = "Content-Type: application/json"\ndata-binary = "@%s"\nmax-time = %s\nsilent\n' \
                "$work/request" "$REQUEST_TIMEOUT_S"
        done | sed 1d >"$work/curl"
        curl --config "$work/curl" || true
        sent=$((sent + RATE_ROUND))
        limited=$(grep -lE '"error": *"rate_limited"' "$work"/cast.* 2>/dev/null | head -n 1)
    done
    [ -z "$limited" ] || cp "$limited" "$work/body"
    is "casting on and on is 429 (after $sent at most)" "$(field error)" rate_limited
    cast "$api_key"
    is "which is an answer with Retry-After" "$status $([ -n "$(header Retry-After)" ] && echo yes)" "429 yes"
fi

# ---- checkout, payment, webhook, active

ask POST /v1/billing/checkout "$api_key"
if [ "$status" = 409 ]; then
    skip "checkout gives an address to pay at" "the account has a subscription already"
    skip "it is paid" "the account has a subscription already"
    paid=before
else
    is "checkout gives an address to pay at" "$status $(field url | grep -c '^https\{0,1\}://')" "200 1"
    pay_url=$(field url)
    paid=
    case $pay_url in
        "") ;;
        "${stripe_url:-none}"/*)
            code=$(curl --silent --max-time "$REQUEST_TIMEOUT_S" --output "$work/body" --write-out '%{http_code}' \
                --data 'how=pay' --data 'email=e2e@example.com' --data 'card=4242 4242 4242 4242' "$pay_url")
            is "it is paid (at the stand-in for Stripe)" "$code" 303
            paid=now
            ;;
        *)
            {
                echo
                echo "Pay here (test mode: card 4242 4242 4242 4242), within $pay_timeout_s s; this goes on by itself:"
                echo "  $pay_url"
                echo
            } >&2
            paid=now
            ;;
    esac
fi
if [ -z "$paid" ]; then
    not_ok "the account is active" "nothing could be paid"
else
    # Stripe's own word: who has a subscription is refused a second one, with its status.
    for _ in $(seq $((pay_timeout_s * 2))); do
        ask POST /v1/billing/checkout "$api_key"
        case "$status $(field details 0 found)" in
            "409 a subscription that is active") break ;;
        esac
        sleep 0.5
    done
    is "Stripe has an active subscription of the account (a second checkout is 409)" \
        "$status $(field details 0 found)" "409 a subscription that is active"
    echo "# to end it: $(field portal_url)"
    if [ "$paid" = now ]; then
        for _ in $(seq $((SETTLE_TIMEOUT_S * 2))); do
            ask GET /v1/budgets "$api_key"
            [ "$(field plan)" = "$plan_before" ] || break
            sleep 0.5
        done
        [ "$(field plan)" != "$plan_before" ] && found=changed || found="still $plan_before"
        is "its webhook has changed the account's plan ($plan_before -> $(field plan))" "$found" changed
        rose "/metrics has counted the webhook" "$webhooks_before" stripe_webhook_total 'result="applied"'
    else
        skip "its webhook has changed the account's plan" "it was paid before"
        skip "/metrics has counted the webhook" "it was paid before"
    fi
    if [ -z "$database_url" ]; then
        skip "the account is active in Postgres" "no DATABASE_URL"
    else
        is "the account is active in Postgres" "$(stored_status "$account_id")" active
    fi
    cast "$api_key"
    # Phase 1 has a limit of its own, and may say 429 itself within this minute; the gateway must not.
    case "$status $(field error)" in
        "200 " | "429 too_many_requests") ok "the next cast passes the gateway ($status)" ;;
        *) is "the next cast passes the gateway" "$status $(field error)" "200 " ;;
    esac
fi

# ---- what was counted

rose "/metrics has counted the 402" "$blocked_before" budget_block_total
[ "$rate_casts_max" = 0 ] || rose "/metrics has counted the 429" "$limited_before" rate_limited_total
rose "/metrics has counted the casts" "$casts_before" spell_cast_total 'status="200"'

echo "1..$count"
echo "# $((count - failures)) of $count hold"
[ "$failures" = 0 ]
