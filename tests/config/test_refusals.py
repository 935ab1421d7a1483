"""One defect each, and the exact line that an operator reads."""

import pytest

from tests.config.good_files import CAST, CONFIG, PLANS, Refusal


def cast(old: str, new: str) -> dict[str, str]:
    assert old in CAST
    return {"policies/cast.yaml": CAST.replace(old, new)}


def config(extra: str) -> dict[str, str]:
    return {"config.yaml": CONFIG + extra}


def upstream(url: str) -> dict[str, str]:
    return {"config.yaml": CONFIG.replace('"${UPSTREAM_URL}"', url)}


def plans(text: str) -> dict[str, str]:
    return {"policies/plans.yaml": PLANS + text}


TWO_ROUTES = """\
policies:
  - name: other
    match: {methods: [PUT, POST], path: /v1/cast}
"""
MANY_LIMITS = "\n".join(f"      - {{name: limit{n}, limit: 1, window: 1s}}" for n in range(9))

DEFECTS: dict[str, tuple[dict[str, str], str]] = {
    # the file as YAML
    "broken YAML": (
        {"policies/cast.yaml": "policies:\n  - name: cast\n    match: {path: /a\n"},
        "policies/cast.yaml:4:1: not valid YAML: did not find expected ',' or '}'",
    ),
    "a tab": (
        {"policies/cast.yaml": "policies:\n\t- name: cast\n"},
        "policies/cast.yaml:2:1: not valid YAML: found character that cannot start any token",
    ),
    "a control character": (
        {"policies/cast.yaml": "policies: []\n# \x01\n"},
        "policies/cast.yaml:2:3: not valid YAML: the character U+0001",
    ),
    "duplicate key": (
        cast("cost:", "name: again\n    cost:"),
        "policies/cast.yaml:4:5: policies[0].name: duplicate key, first at line 2",
    ),
    "anchor": (
        cast("[POST]", "&methods [POST]"),
        "policies/cast.yaml:3:22: policies[0].match.methods: YAML anchors are not supported, found &methods",
    ),
    "alias": (
        cast("[POST]", "*methods"),
        "policies/cast.yaml:3:22: policies[0].match.methods: "
        "expected a value, found the YAML alias *methods: write the value out",
    ),
    "tag": (
        cast("name: cast", "name: !!python/name:os.system cast"),
        "policies/cast.yaml:2:11: policies[0].name: "
        "YAML tags are not supported, found tag:yaml.org,2002:python/name:os.system",
    ),
    "two documents": (
        cast("policies:", "---\npolicies: []\n---\npolicies:"),
        "policies/cast.yaml:3:1: expected one YAML document, found a second",
    ),
    "a list as key": (
        {"policies/cast.yaml": "? [policies]\n: 1\n"},
        "policies/cast.yaml:1:3: expected a key, found a value of several parts",
    ),
    "too deep": (
        {"policies/cast.yaml": "policies: " + "[" * 30 + "]" * 30},
        "policies/cast.yaml:1:31: expected at most 20 levels",
    ),
    "a list as file": (
        {"policies/cast.yaml": "- name: cast\n"},
        "policies/cast.yaml:1:1: expected a mapping, found a list",
    ),
    # variables
    "missing variable": (
        cast("1m", '"${WINDOW}"'),
        "policies/cast.yaml:6:76: policies[0].rate_limits[0].window: "
        "environment variable WINDOW is not set and has no default (${WINDOW:-…})",
    ),
    "missing variable within a text": (
        config("log: {level: 'in${LEVEL}'}\n"),
        "config.yaml:8:14: log.level: environment variable LEVEL is not set and has no default (${LEVEL:-…})",
    ),
    "malformed reference": (
        config("log: {level: '${LOG-LEVEL}'}\n"),
        'config.yaml:8:14: log.level: expected "${NAME}", "${NAME:-default}" or, for a dollar sign, "$$"',
    ),
    "a variable in a default": (
        config("log: {level: '${A:-${B}}'}\n"),
        'config.yaml:8:14: log.level: expected "${NAME}", "${NAME:-default}" or, for a dollar sign, "$$"',
    ),
    # keys
    "unknown section": (
        config("limit: {}\n"),
        'config.yaml:8:1: limit: unknown key "limit", did you mean "limits"?',
    ),
    "unknown key, a near miss": (
        plans("  pro: {hard_limit_cent: {monthly: 1}}\n"),
        'policies/plans.yaml:3:9: plans.pro.hard_limit_cent: unknown key "hard_limit_cent", '
        'did you mean "hard_limit_cents"?',
    ),
    "unknown key, near nothing": (
        cast("fixed:", "tokens:"),
        'policies/cast.yaml:4:12: policies[0].cost.tokens: unknown key "tokens", expected one of bytes, charge_when, '
        "duration, fixed, free, header, hold_cents, if_missing, json, maximum_cents, minimum_cents, sum",
    ),
    "a unit in a key": (
        config("limits: {header_timeout_s: 5s}\n"),
        'config.yaml:8:10: limits.header_timeout_s: unknown key "header_timeout_s", did you mean "header_timeout"?',
    ),
    "a webhook that nobody could verify": (
        config("soft_limits: {webhook: {url: https://ops.example/}}\n"),
        "config.yaml:8:24: soft_limits.webhook.secret: expected a secret, with which the messages are signed",
    ),
    "a webhook's address, which may hold a token, is not shown": (
        config("soft_limits: {webhook: {url: 'https://ops.example:99999/t0ken'}}\n"),
        "config.yaml:8:30: soft_limits.webhook.url: expected an http or https URL, found a value that is not shown",
    ),
    "a webhook at no host": (
        config("soft_limits: {webhook: {url: 'https:///t0ken'}}\n"),
        "config.yaml:8:30: soft_limits.webhook.url: expected an http or https URL, found a value that is not shown",
    ),
    "a secret of another kind": (
        config("soft_limits: {webhook: {secret: whsec_4eC39HqLyjWDarjtT1zdp7dc}}\n"),
        "config.yaml:8:33: soft_limits.webhook.secret: expected whsec_ and the base64 of 24 to 64 random bytes "
        "(several separated by commas), found another text",
    ),
    "merge key": (
        cast("cost:", "<<: {mode: shadow}\n    cost:"),
        'policies/cast.yaml:4:5: policies[0].<<: unknown key "<<", expected one of '
        "body_bytes_max, budget_headers, cost, idempotency, log, match, mode, name, on_client_abort, on_orphan, "
        "on_store_failure, rate_limit_headers, rate_limits, record",
    ),
    "missing key": (cast("path: /v1/cast", ""), 'policies/cast.yaml:3:12: policies[0].match: missing key "path"'),
    "missing section": (
        {"config.yaml": CONFIG.replace('redis: {url: "${REDIS_URL}"}\n', "")},
        'config.yaml:1:1: missing key "redis"',
    ),
    "an empty fixed cost": (
        cast('{fixed: {cents: "${COST_PER_CAST_CENTS}"}}', "{fixed: }"),
        'policies/cast.yaml:4:19: policies[0].cost.fixed: missing key "cents"',
    ),
    # types
    "a mapping for text": (
        cast("name: cast", "name: {a: 1}"),
        "policies/cast.yaml:2:11: policies[0].name: "
        "expected a name of at most 64 letters, digits, dots, dashes or underscores, found a mapping",
    ),
    "text for a list": (
        cast("[POST]", "POST"),
        'policies/cast.yaml:3:22: policies[0].match.methods: expected a list, found "POST"',
    ),
    "nothing for a list": (
        {"policies/cast.yaml": "policies:\n"},
        "policies/cast.yaml:1:10: policies: expected a list, found nothing",
    ),
    "text for a section": (config("admin: 9090\n"), "config.yaml:8:8: admin: expected a mapping, found 9090"),
    "text for an integer": (
        config("listen: {port: http}\n"),
        'config.yaml:8:16: listen.port: expected an integer of 0 or more, found "http"',
    ),
    "a fraction for an integer": (
        config("listen: {backlog: 1.5}\n"),
        "config.yaml:8:19: listen.backlog: expected an integer of 1 or more, found 1.5",
    ),
    "nothing for an integer": (
        config("listen: {port: }\n"),
        "config.yaml:8:16: listen.port: expected an integer of 0 or more, found nothing",
    ),
    "yes for true": (
        config("metrics: {public: yes}\n"),
        'config.yaml:8:19: metrics.public: expected true or false, found "yes"',
    ),
    "a number for a duration": (
        config("drain_timeout: 10\n"),
        "config.yaml:8:16: drain_timeout: expected a duration such as 250ms, 5s, 1m, 1h or 1d, found 10",
    ),
    "a duration too long": (
        {"config.yaml": CONFIG.replace('REDIS_URL}"}', 'REDIS_URL}", timeout: 1m}')},
        'config.yaml:3:39: redis.timeout: expected a duration of 1ms to 10s, found "1m"',
    ),
    "a size in KB": (
        config("limits: {head_bytes_max: 32KB}\n"),
        'config.yaml:8:26: limits.head_bytes_max: expected a size such as 512B, 64KiB or 1MiB, found "32KB"',
    ),
    "a size too small": (
        config("limits: {head_bytes_max: 10B}\n"),
        'config.yaml:8:26: limits.head_bytes_max: expected a size of 1KiB to 1MiB, found "10B"',
    ),
    "workers": (
        config("workers: many\n"),
        'config.yaml:8:10: workers: expected auto or an integer of 1 to 64, found "many"',
    ),
    "too many workers": (
        config("workers: 65\n"),
        "config.yaml:8:10: workers: expected an integer of at most 64, found 65",
    ),
    "an unknown word": (
        config("log: {format: jsno}\n"),
        'config.yaml:8:15: log.format: expected one of json, console, found "jsno", did you mean "json"?',
    ),
    "a key where another thing stands": (
        config("identity: {api_key: {header: Host}}\n"),
        "config.yaml:8:30: identity.api_key.header: expected a header name that is the caller's own "
        '(not of the connection, the framing or X-Forwarded-…), found "Host"',
    ),
    "a header that cannot be": (
        config("identity: {api_key: {header: 'X Key'}}\n"),
        'config.yaml:8:30: identity.api_key.header: expected a header name, found "X Key"',
    ),
    # addresses
    "an address without scheme": (
        upstream("localhost:3000"),
        "config.yaml:1:17: upstream.url: expected http://host:port, https://host:port or unix:/path, "
        'found "localhost:3000"',
    ),
    "an upstream with a path": (
        upstream("http://localhost:3000/api"),
        'config.yaml:1:17: upstream.url: expected http://host:port, https://host:port or unix:/path, found "http://localhost:3000/api"',
    ),
    "one bad upstream of two": (
        upstream('"http://localhost,ftp://localhost"'),
        'config.yaml:1:17: upstream.url: expected http://host:port, https://host:port or unix:/path, found "ftp://localhost"',
    ),
    "one upstream twice": (
        upstream('"http://localhost, http://localhost"'),
        'config.yaml:1:17: upstream.url: expected each address once, found "http://localhost"',
    ),
    "an upstream at a relative path": (
        upstream("unix:run/upstream.sock"),
        "config.yaml:1:17: upstream.url: expected http://host:port, https://host:port or unix:/path, "
        'found "unix:run/upstream.sock"',
    ),
    "a listener at a relative path": (
        config("listen: {host: 'unix:castgate.sock'}\n"),
        'config.yaml:8:16: listen.host: expected a host name, an IP address or unix:/path, found "unix:castgate.sock"',
    ),
    "a certificate without its key": (
        config("listen: {tls: {certificate: a.pem}}\n"),
        "config.yaml:8:15: listen.tls.key: expected a file, found none, yet there is a certificate",
    ),
    "a certificate that is not there": (
        config("listen: {tls: {certificate: no/a.pem, key: no/a.key}}\n"),
        "config.yaml:8:29: listen.tls.certificate: expected a certificate and its key, but no/a.pem cannot be read: "
        "No such file or directory",
    ),
    "authorities that are none": (
        {"config.yaml": CONFIG.replace('}"}', '}", ca_file: config.yaml}', 1)},
        "config.yaml:1:45: upstream.ca_file: expected a PEM file, but config.yaml holds no certificates: "
        "NO_CERTIFICATE_OR_CRL_FOUND",
    ),
    "a port that cannot be": (
        upstream("http://localhost:99999"),
        'config.yaml:1:17: upstream.url: expected http://host:port, https://host:port or unix:/path, found "http://localhost:99999"',
    ),
    # contradictions
    "one port for two listeners": (
        config("admin: {port: 8080}\n"),
        "config.yaml:8:15: admin.port: expected a port other than listen.port, found 8080",
    ),
    "an admin listener for everybody": (
        config("admin: {host: 0.0.0.0}\n"),
        "config.yaml:8:8: admin.token: expected a token (ADMIN_TOKEN), as 0.0.0.0 can be reached from other machines",
    ),
    "an admin token that can be guessed": (
        config("admin: {token: hunter2}\n"),
        "config.yaml:8:16: admin.token: expected a token of at least 16 characters, found one of 7",
    ),
    "an open path that is none": (
        config("admin: {open_paths: /console}\n"),
        'config.yaml:8:21: admin.open_paths: expected some of /metrics, /healthz, /readyz, found "/console"',
    ),
    "an address header that nobody is trusted to set": (
        config("forwarding: {client_address_header: Fly-Client-IP}\n"),
        "config.yaml:8:37: forwarding.client_address_header: "
        "expected trusted_proxies beside it: nobody else is believed",
    ),
    "a network that is none": (
        config("forwarding: {trusted_proxies: [10.0.0.0/8, 10.0.0.0/33]}\n"),
        "config.yaml:8:44: forwarding.trusted_proxies[1]: "
        'expected a network such as 10.0.0.0/8 or an address, found "10.0.0.0/33"',
    ),
    "a network with bits of a host": (
        config("forwarding: {trusted_proxies: [10.0.0.1/8]}\n"),
        "config.yaml:8:32: forwarding.trusted_proxies[0]: "
        'expected a network such as 10.0.0.0/8 or an address, found "10.0.0.1/8"',
    ),
    "a name in Via that is two": (
        config('forwarding: {via: "a b"}\n'),
        'config.yaml:8:19: forwarding.via: expected a name, found "a b"',
    ),
    "a folder that is not there": (
        config("policies: rules\n"),
        "config.yaml:8:11: policies: expected a folder, found none at rules",
    ),
    # policies
    "a lower-case method": (
        cast("[POST]", "[POST, get]"),
        'policies/cast.yaml:3:29: policies[0].match.methods[1]: expected an HTTP method in capitals, found "get"',
    ),
    "a method twice": (
        cast("[POST]", "[POST, POST]"),
        "policies/cast.yaml:3:29: policies[0].match.methods[1]: duplicate method POST",
    ),
    "a path that is not canonical": (
        cast("/v1/cast", "/v1//cast"),
        "policies/cast.yaml:3:36: policies[0].match.path: "
        'expected a canonical path such as /v1/cast or /v1/*, found "/v1//cast"',
    ),
    "a path with a star inside": (
        cast("/v1/cast", "/v1/*/cast"),
        "policies/cast.yaml:3:36: policies[0].match.path: "
        'expected a canonical path such as /v1/cast or /v1/*, found "/v1/*/cast"',
    ),
    "an unknown mode": (
        cast("cost:", "mode: shadwo\n    cost:"),
        "policies/cast.yaml:4:11: policies[0].mode: "
        'expected one of enforce, shadow, found "shadwo", did you mean "shadow"?',
    ),
    "cents that are no number": (
        cast('"${COST_PER_CAST_CENTS}"', "free"),
        'policies/cast.yaml:4:27: policies[0].cost.fixed.cents: expected cents as a number, found "free"',
    ),
    "negative cents": (
        cast('"${COST_PER_CAST_CENTS}"', "-0.5"),
        "policies/cast.yaml:4:27: policies[0].cost.fixed.cents: expected cents of 0 or more, found -0.5",
    ),
    "cents finer than a microcent": (
        cast('"${COST_PER_CAST_CENTS}"', "0.0000001"),
        "policies/cast.yaml:4:27: policies[0].cost.fixed.cents: "
        "expected at most six decimals of a cent, found 0.0000001",
    ),
    "cents in exponent form": (
        cast('"${COST_PER_CAST_CENTS}"', "1e2"),
        'policies/cast.yaml:4:27: policies[0].cost.fixed.cents: expected cents as a number, found "1e2"',
    ),
    "a negative limit": (
        cast('"${RATE_LIMIT_PER_MINUTE:-60}"', "-3"),
        "policies/cast.yaml:6:36: policies[0].rate_limits[0].limit: expected an integer of 1 or more, found -3",
    ),
    "a limit of nothing": (
        cast('"${RATE_LIMIT_PER_MINUTE:-60}"', "0"),
        "policies/cast.yaml:6:36: policies[0].rate_limits[0].limit: expected an integer of 1 or more, found 0",
    ),
    "an unknown algorithm": (
        cast("window: 1m", "window: 1m, algorithm: leaky_bucket"),
        "policies/cast.yaml:6:91: policies[0].rate_limits[0].algorithm: expected one of fixed_window, "
        'sliding_window, token_bucket, concurrency, found "leaky_bucket"',
    ),
    "no window": (
        cast(", window: 1m", ""),
        'policies/cast.yaml:6:9: policies[0].rate_limits[0]: missing key "window" (algorithm sliding_window)',
    ),
    "a window for concurrency": (
        cast("window: 1m", "window: 1m, algorithm: concurrency"),
        "policies/cast.yaml:6:76: policies[0].rate_limits[0].window: expected no window for the algorithm concurrency",
    ),
    "a burst without a bucket": (
        cast("window: 1m", "window: 1m, burst: 5"),
        "policies/cast.yaml:6:87: policies[0].rate_limits[0].burst: expected no burst for the algorithm sliding_window",
    ),
    "a window too long": (
        cast("window: 1m", "window: 32d"),
        'policies/cast.yaml:6:76: policies[0].rate_limits[0].window: expected a duration of 100ms to 31d, found "32d"',
    ),
    "an unknown key of a limit": (
        cast("window: 1m", "window: 1m, key: user"),
        "policies/cast.yaml:6:85: policies[0].rate_limits[0].key: "
        'expected account, api_key, ip, route or header:<name>, found "user"',
    ),
    "two limits of one name": (
        cast("    rate_limits:\n", "    rate_limits:\n      - {name: per-account, limit: 1, window: 1s}\n"),
        'policies/cast.yaml:7:16: policies[0].rate_limits[1].name: duplicate rate limit "per-account"',
    ),
    "too many limits": (
        cast("    rate_limits:\n", f"    rate_limits:\n{MANY_LIMITS}\n"),
        "policies/cast.yaml:6:7: policies[0].rate_limits: expected at most 8 rate limits, found 10",
    ),
    "a JSON pointer without a slash": (
        cast("cost:", "record: {cast_id: {json: id}}\n    cost:"),
        'policies/cast.yaml:4:30: policies[0].record.cast_id.json: expected a JSON pointer such as /id, found "id"',
    ),
    "two policies for one route": (
        {"policies/other.yaml": TWO_ROUTES},
        "policies/other.yaml:3:41: policies[0].match: two policies for one route: "
        'POST /v1/cast is taken by "cast" at policies/cast.yaml:3:36',
    ),
    "two policies for every method": (
        {"policies/other.yaml": TWO_ROUTES.replace("methods: [PUT, POST], ", "")},
        "policies/other.yaml:3:19: policies[0].match: two policies for one route: "
        'POST /v1/cast is taken by "cast" at policies/cast.yaml:3:36',
    ),
    "two policies of one name": (
        {"policies/other.yaml": "policies:\n  - {name: cast, match: {path: /v2}}\n"},
        'policies/other.yaml:2:12: policies[0].name: duplicate policy "cast", first at policies/cast.yaml:2:11',
    ),
    # plans
    "an unknown period": (
        plans("  pro: {hard_limit_cents: {montly: 1}}\n"),
        'policies/plans.yaml:3:28: plans.pro.hard_limit_cents.montly: unknown key "montly", did you mean "monthly"?',
    ),
    "a limit above 2^53 microcents": (
        plans("  pro: {hard_limit_cents: {monthly: 9007199254.740992}}\n"),
        "policies/plans.yaml:3:37: plans.pro.hard_limit_cents.monthly: "
        "expected at most 9007199254.740991 cents (2^53 microcents), found 9007199254.740992",
    ),
    "a negative budget": (
        plans("  pro: {hard_limit_cents: {monthly: -1}}\n"),
        "policies/plans.yaml:3:37: plans.pro.hard_limit_cents.monthly: expected cents of 0 or more, found -1",
    ),
    "an empty budget": (
        plans("  pro: {hard_limit_cents: {monthly: }}\n"),
        "policies/plans.yaml:3:37: plans.pro.hard_limit_cents.monthly: expected cents as a number, found nothing",
    ),
    "an unknown time zone": (
        plans("  pro: {time_zone: Europe/Berln}\n"),
        "policies/plans.yaml:3:20: plans.pro.time_zone: expected an IANA time zone such as Europe/Berlin, "
        'found "Europe/Berln", did you mean "Europe/Berlin"?',
    ),
    "the machine's own time zone": (
        plans("  pro: {time_zone: localtime}\n"),
        "policies/plans.yaml:3:20: plans.pro.time_zone: expected an IANA time zone such as Europe/Berlin, "
        'found "localtime"',
    ),
    "an unknown week start": (
        plans("  pro: {week_start: 1}\n"),
        "policies/plans.yaml:3:21: plans.pro.week_start: expected one of monday, tuesday, wednesday, thursday, "
        "friday, saturday, sunday, found 1",
    ),
    "an override of no limit": (
        plans("  pro: {rate_limits: {per-acount: {limit: 5}}}\n"),
        "policies/plans.yaml:3:23: plans.pro.rate_limits.per-acount: "
        'no policy has a rate limit called "per-acount", did you mean "per-account"?',
    ),
    "a plan twice": (
        {"policies/more.yaml": "plans: {free: {}}\n"},
        'policies/plans.yaml:2:3: plans.free: duplicate plan "free", first at policies/more.yaml:1:9',
    ),
    "a plan name that cannot be": (
        plans("  two words: {}\n"),
        "policies/plans.yaml:3:3: plans.two words: "
        'expected a name of at most 64 letters, digits, dots, dashes or underscores, found "two words"',
    ),
    "no plans at all": (
        {"policies/plans.yaml": ""},
        'config.yaml:7:17: billing.default_plan: no plan is called "free"',
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_told_with_its_place_its_key_and_what_was_expected(defect: str, refusal: Refusal) -> None:
    files, line = DEFECTS[defect]
    assert refusal(files) == [line]


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        (
            "COST_PER_CAST_CENTS",
            "a cent",
            'environment: COST_PER_CAST_CENTS: expected cents as a number, found "a cent"',
        ),
        ("COST_PER_CAST_CENTS", "-1", "environment: COST_PER_CAST_CENTS: expected cents of 0 or more, found -1"),
        (
            "RATE_LIMIT_PER_MINUTE",
            "none",
            "policies/cast.yaml:6:36: policies[0].rate_limits[0].limit: "
            'expected an integer of 1 or more, found "none" (from ${RATE_LIMIT_PER_MINUTE})',
        ),
        (
            "BILLING_PLAN_DEFAULT",
            "fre",
            'config.yaml:7:17: billing.default_plan: no plan is called "fre", did you mean "free"?',
        ),
        (
            "UPSTREAM_URL",
            "localhost:3000",
            "config.yaml:1:17: upstream.url: expected http://host:port, https://host:port or unix:/path, "
            'found "localhost:3000" (from ${UPSTREAM_URL})',
        ),
        (
            "UPSTREAM_URL",
            "",
            "config.yaml:1:17: upstream.url: expected http://host:port, https://host:port or unix:/path, "
            'found "" (from ${UPSTREAM_URL})',
        ),
        (
            "DATABASE_URL",
            None,
            "config.yaml:2:17: database.url: "
            "environment variable DATABASE_URL is not set and has no default (${DATABASE_URL:-…})",
        ),
        (
            "DATABASE_URL",
            "postgresql://castgate@db/castgate?pgbouncer=1",
            "config.yaml:2:17: database.url: "
            'expected pgbouncer=true or pgbouncer=false, if either, found "pgbouncer=1"',
        ),
        (
            "STRIPE_SECRET_KEY",
            "pk_live_51H",
            "config.yaml:5:22: billing.stripe_secret_key: "
            "expected a Stripe secret key (sk_… or rk_…), found a publishable key (pk_…)",
        ),
        (
            "STRIPE_SECRET_KEY",
            "sk_live_51H\nsk_live_51H",
            "config.yaml:5:22: billing.stripe_secret_key: "
            "expected a Stripe secret key (sk_… or rk_…), found one with spaces or other characters that no key has",
        ),
        (
            "STRIPE_WEBHOOK_SECRET",
            "sk_live_51H",
            "config.yaml:6:26: billing.stripe_webhook_secret: "
            "expected a Stripe webhook signing secret (whsec_…), found a secret key (sk_…)",
        ),
    ],
)
def test_a_bad_variable_is_told_by_its_name(variable: str, value: str | None, line: str, refusal: Refusal) -> None:
    assert refusal(**{variable: value}) == [line]


def test_all_mistakes_are_told_at_once_in_the_order_of_files_and_lines(refusal: Refusal) -> None:
    files = {
        "config.yaml": CONFIG + "listen: {port: x, prot: 1}\nworkers: 0\n",
        "policies/cast.yaml": CAST.replace("1m", "1y").replace("/v1/cast", "v1"),
        "policies/plans.yaml": "plans: {free: {time_zone: Mars}}\n",
    }
    assert [line.partition(": ")[0] for line in refusal(files)] == [
        "config.yaml:8:16",
        "config.yaml:8:19",
        "config.yaml:9:10",
        "policies/cast.yaml:3:36",
        "policies/cast.yaml:6:76",
        "policies/plans.yaml:1:27",
    ]


def test_a_reference_into_a_refused_file_is_not_told_as_missing(refusal: Refusal) -> None:
    assert refusal({"policies/plans.yaml": "plans: [\n"}) == [
        "policies/plans.yaml:2:1: not valid YAML: did not find expected node content"
    ]


def test_a_broken_file_hides_no_mistake_of_another(refusal: Refusal) -> None:
    lines = refusal({"config.yaml": "{", "policies/plans.yaml": "plans: {free: {week_start: mon}}\n"})
    assert [line.partition(":")[0] for line in lines] == ["config.yaml", "policies/plans.yaml"]


def test_text_that_is_not_utf_8_is_told_by_its_place(refusal: Refusal) -> None:
    assert refusal({"policies/plans.yaml": b"plans:\n  fr\xffee: {}\n"}) == ["policies/plans.yaml:2:5: not UTF-8 text"]


def test_a_file_too_large_is_refused_unread(refusal: Refusal) -> None:
    assert refusal({"policies/plans.yaml": b"#" * (8 * 1024 * 1024 + 1)}) == [
        "policies/plans.yaml: expected at most 8388608 bytes, found 8388609"
    ]


def test_a_thousand_mistakes_end_with_their_number(refusal: Refusal) -> None:
    lines = refusal({"policies/bad.yaml": "\n".join(f"key{n}: 1" for n in range(1000))})
    assert len(lines) == 101
    assert lines[-1] == "and 900 more"
