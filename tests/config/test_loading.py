"""What good files mean."""

import os
import time
from pathlib import Path
from typing import get_args

import pytest

from gateway.config import ConfigError, costs, load, policies, rate_limits
from gateway.policy.budgets import BudgetLimit
from gateway.policy.costs import BYTES_OF, EVENTS, IF_MISSING
from gateway.policy.rules import ALGORITHMS, CHARGE_WHEN, ENFORCE, RATE_LIMIT_HEADERS, SHADOW, Cost, Policy, RateLimit
from gateway.policy.weights import HeaderWeight
from tests.config.good_files import CAST, CONFIG, PLANS, LoadIt, Refusal, Write


def test_a_policy_has_everything_its_file_says(load_it: LoadIt) -> None:
    text = """\
policies:
  - name: cast
    match: {methods: [POST, PUT], path: /v1/cast/*}
    mode: shadow
    cost: {fixed: {cents: 0.1}, charge_when: sent}
    rate_limits:
      - {name: per-account, limit: 60, window: 1m}
      - {name: bursts, key: ip, limit: 10, window: 1s, algorithm: token_bucket, burst: 50}
      - {name: at-once, key: "header:X-Tenant", limit: 4, algorithm: concurrency}
    record: {cast_id: {json: /data/0/id}}
    on_store_failure: deny
    on_client_abort: charge
    on_orphan: void
"""
    assert load_it({"policies/cast.yaml": text}).rules.policies == (
        Policy(
            name="cast",
            methods=frozenset({"POST", "PUT"}),
            path="/v1/cast/*",
            mode="shadow",
            cost=Cost(fixed_microcents=100_000, charge_when="sent"),
            rate_limits=(
                RateLimit(name="per-account", key="account", limit=60, window_ms=60_000, algorithm="sliding_window"),
                RateLimit(name="bursts", key="ip", limit=10, window_ms=1_000, algorithm="token_bucket", burst=50),
                RateLimit(name="at-once", key="header:X-Tenant", limit=4, window_ms=0, algorithm="concurrency"),
            ),
            on_store_failure="deny",
            on_client_abort="charge",
            on_orphan="void",
            cast_id_pointer="/data/0/id",
        ),
    )


def test_a_limit_has_the_weight_its_file_says(load_it: LoadIt) -> None:
    text = """\
policies:
  - name: cast
    match: {path: /v1/cast}
    rate_limits:
      - {name: units, limit: 60, window: 1m, weight: "${WEIGHT}"}
      - {name: told, limit: 60, window: 1m, weight: {header: X-Units, max: 100}}
      - {name: usual, limit: 60, window: 1m, weight: {header: X-Units, default: 2, max: 100}}
      - {name: filled, limit: 1, window: 1m, algorithm: token_bucket, burst: 9, weight: 9}
      - {name: slots, limit: 1, algorithm: concurrency, weight: 1}
plans: {free: {rate_limits: {units: {limit: 5}, filled: {limit: 1}}}}
"""
    [policy] = load_it({"policies/cast.yaml": text, "policies/plans.yaml": ""}, WEIGHT="5").rules.policies
    assert [limit.weight for limit in policy.rate_limits] == [
        5,
        HeaderWeight(field="x-units", default=1, maximum=100),
        HeaderWeight(field="x-units", default=2, maximum=100),
        9,
        1,
    ]
    assert policy.is_weighed_by_call


def test_a_policy_of_name_and_path_is_free_and_for_every_method(load_it: LoadIt) -> None:
    rules = load_it({"policies/cast.yaml": "policies: [{name: cast, match: {path: /v1/cast}}]"}).rules
    assert rules.policies == (Policy(name="cast", methods=frozenset(), path="/v1/cast"),)


def test_files_and_rules_know_the_same_words() -> None:
    assert get_args(rate_limits.Mode) == (ENFORCE, SHADOW)
    assert get_args(rate_limits.Algorithm) == ALGORITHMS
    assert get_args(policies.RateLimitHeaders) == RATE_LIMIT_HEADERS
    assert get_args(costs.ChargeWhen) == CHARGE_WHEN
    assert get_args(costs.Events) == EVENTS
    assert get_args(costs.BytesOf) == BYTES_OF
    assert get_args(costs.IfMissing) == IF_MISSING


def test_a_plan_has_a_budget_for_each_period_listed(load_it: LoadIt) -> None:
    text = """\
plans:
  free: {}
  pro:
    stripe_price: price_1
    hard_limit_cents: {daily: 10.5, weekly: 60, total: "9007199254.740991"}
    time_zone: Asia/Tokyo
    week_start: sunday
    rate_limits: {per-account: {limit: 600}}
"""
    plans = load_it({"policies/plans.yaml": text}).rules.plans
    assert plans["free"].budgets == ()
    assert plans["pro"].budgets == (
        BudgetLimit(period="total", hard_limit_microcents=2**53 - 1),
        BudgetLimit(period="weekly", hard_limit_microcents=60_000_000, time_zone="Asia/Tokyo", week_start=7),
        BudgetLimit(period="daily", hard_limit_microcents=10_500_000, time_zone="Asia/Tokyo"),
    )
    assert plans["pro"].rate_limits == {"per-account": 600}
    assert plans["pro"].stripe_price == "price_1"


@pytest.mark.parametrize(
    ("written", "microcents"),
    [("0.1", 100_000), ("0.000001", 1), ("1", 1_000_000), ("'1.50'", 1_500_000), ("12.000001", 12_000_001), ("0", 0)],
)
def test_cents_are_exact_as_written(written: str, microcents: int, load_it: LoadIt) -> None:
    files = {"policies/cast.yaml": CAST.replace('"${COST_PER_CAST_CENTS}"', written)}
    assert load_it(files).rules.policies[0].cost.fixed_microcents == microcents


def test_policies_and_plans_come_from_every_yaml_file_of_the_folder(load_it: LoadIt) -> None:
    files = {
        "policies/a.yaml": "plans: {gold: {}}\npolicies: [{name: a, match: {path: /a}}]",
        "policies/.hidden.yaml": "no: {configuration",
        "policies/README.md": "neither",
        "policies/empty.yaml": "# later\n",
    }
    loaded = load_it(files)
    assert [policy.name for policy in loaded.rules.policies] == ["a", "cast"]
    assert set(loaded.rules.plans) == {"gold", "free"}
    names = [str(path) for path in loaded.files]
    assert names == ["config.yaml", *(f"policies/{name}.yaml" for name in ("a", "cast", "empty", "plans"))]
    assert loaded.warnings == ()


def test_a_file_named_yml_is_not_read_and_told(load_it: LoadIt) -> None:
    assert load_it({"policies/more.yml": "x"}).warnings == ("policies/more.yml: not read, only files named *.yaml are",)


def test_routes_may_share_a_path_by_method_and_lie_below_each_other(load_it: LoadIt) -> None:
    text = """\
policies:
  - {name: read, match: {methods: [GET, HEAD], path: /v1/cast}}
  - {name: below, match: {path: /v1/*}}
"""
    assert len(load_it({"policies/other.yaml": text}).rules.policies) == 3


def test_the_policies_folder_is_seen_from_the_folder_of_the_config_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write({"config.yaml": CONFIG.replace("${", "${X_") + "policies: policies\n"})
    monkeypatch.chdir("/")
    with pytest.raises(
        ConfigError, match=f"{tmp_path}/config.yaml:1:17: upstream.url: environment variable X_UPSTREAM_URL"
    ):
        load(tmp_path / "config.yaml", {})


def test_a_config_file_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policies").mkdir()
    with pytest.raises(ConfigError) as caught:
        load(Path("config.yaml"), {})
    assert str(caught.value) == "config.yaml: cannot be read: No such file or directory"


# --- variables


def test_a_variable_stands_anywhere_in_a_text_and_keeps_being_text(load_it: LoadIt) -> None:
    extra = 'listen: {host: "${HOST_PART}.0.0.${LAST:-7}", port: "80${PORT_END}"}\n'
    listen = load_it({"config.yaml": CONFIG + extra}, HOST_PART="127", PORT_END="81").settings.listen
    assert (listen.host, listen.port) == ("127.0.0.7", 8081)


def test_a_default_stands_in_for_a_variable_that_is_missing_or_empty(load_it: LoadIt) -> None:
    for value, limit in ((None, 60), ("", 60), ("5", 5)):
        assert load_it(RATE_LIMIT_PER_MINUTE=value).rules.policies[0].rate_limits[0].limit == limit


def test_a_dollar_sign_is_kept_before_a_digit_and_doubled_before_a_brace(load_it: LoadIt) -> None:
    extra = "ledger: {cast_cost_sql: 'SELECT $1, $$2, $${UPSTREAM_URL}, $'}\n"
    settings = load_it({"config.yaml": CONFIG + extra}).settings
    assert settings.ledger.cast_cost_sql == "SELECT $1, $2, ${UPSTREAM_URL}, $"


def test_the_value_of_a_variable_is_never_read_as_yaml_or_as_a_reference(load_it: LoadIt) -> None:
    extra = 'ledger: {cast_cost_sql: "${SQL}"}\n'
    settings = load_it({"config.yaml": CONFIG + extra}, SQL="a: [${HOME}] # no\n - b").settings
    assert settings.ledger.cast_cost_sql == "a: [${HOME}] # no\n - b"


# --- billing


def test_billing_is_on_where_all_three_variables_are_set(load_it: LoadIt) -> None:
    loaded = load_it()
    assert loaded.billing_enabled
    assert loaded.warnings == ()
    assert loaded.rules.policies[0].cost.fixed_microcents == 1_000_000


@pytest.mark.parametrize(("value", "word"), [(None, "not set"), ("", "blank"), ("  ", "blank")])
@pytest.mark.parametrize("name", ["STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "COST_PER_CAST_CENTS"])
def test_billing_is_off_and_says_why_where_one_is_missing(
    name: str, value: str | None, word: str, load_it: LoadIt
) -> None:
    loaded = load_it(**{name: value})
    assert not loaded.billing_enabled
    suffix = ", policies count it as 0" if name == "COST_PER_CAST_CENTS" else ""
    assert loaded.warnings == (f"billing is off: {name} is {word}{suffix}",)


def test_each_missing_variable_is_told(load_it: LoadIt) -> None:
    loaded = load_it(STRIPE_SECRET_KEY=None, STRIPE_WEBHOOK_SECRET=None, COST_PER_CAST_CENTS=None)
    assert [warning.split()[3] for warning in loaded.warnings] == [
        "STRIPE_SECRET_KEY",
        "STRIPE_WEBHOOK_SECRET",
        "COST_PER_CAST_CENTS",
    ]
    assert loaded.rules.policies[0].cost.fixed_microcents == 0


def test_a_cost_that_is_missing_leaves_a_policy_its_own_default(load_it: LoadIt) -> None:
    files = {"policies/cast.yaml": CAST.replace("${COST_PER_CAST_CENTS}", "${COST_PER_CAST_CENTS:-2}")}
    assert load_it(files, COST_PER_CAST_CENTS=None).rules.policies[0].cost.fixed_microcents == 2_000_000


def test_webhook_secrets_may_be_several_while_one_takes_over(load_it: LoadIt) -> None:
    settings = load_it(STRIPE_WEBHOOK_SECRET="whsec_new,whsec_old").settings
    assert settings.billing.stripe_webhook_secrets == ("whsec_new", "whsec_old")


# --- secrets


def test_no_secret_is_in_a_repr(load_it: LoadIt) -> None:
    shown = repr(load_it())
    assert "hunter2" not in shown
    assert "4eC39HqLyjWDarjtT1zdp7dc" not in shown


@pytest.mark.parametrize(
    "misplaced",
    [
        "workers: ${STRIPE_SECRET_KEY}\n",
        "workers: ${DATABASE_URL}\n",
        "workers: sk_live_4eC39HqLyjWDarjtT1zdp7dc\n",
        "admin: postgresql://castgate:hunter2@127.0.0.1/castgate\n",
        "log: [${STRIPE_WEBHOOK_SECRET}]\n",
        "log: {level: '${STRIPE_WEBHOOK_SECRET}'}\n",
        "workers: ${API_TOKEN}\n",
    ],
)
def test_no_secret_is_in_a_message(misplaced: str, refusal: Refusal) -> None:
    (line,) = refusal({"config.yaml": CONFIG + misplaced}, API_TOKEN="hunter2")
    assert "hunter2" not in line
    assert "4eC39HqLyjWDarjtT1zdp7dc" not in line


def test_a_bad_address_of_a_store_is_told_without_its_password(refusal: Refusal) -> None:
    assert refusal(DATABASE_URL="mysql://castgate:hunter2@db/castgate", REDIS_URL="redis:hunter2@h") == [
        "config.yaml:2:17: database.url: expected a URL such as postgresql://user@host/database, "
        "found a value that is not shown (from ${DATABASE_URL})",
        "config.yaml:3:14: redis.url: expected a URL such as redis://host:6379/0, "
        "found a value that is not shown (from ${REDIS_URL})",
    ]


# --- versions


def test_the_version_changes_with_text_variables_and_default_plan_and_nothing_else(load_it: LoadIt) -> None:
    first = load_it().rules.version
    assert load_it(UNRELATED="1", PORT="1234").rules.version == first
    versions = {
        first,
        load_it(COST_PER_CAST_CENTS="2").rules.version,
        load_it(RATE_LIMIT_PER_MINUTE="61").rules.version,
        load_it({"policies/plans.yaml": PLANS + "# a comment\n"}).rules.version,
        load_it({"policies/plans.yaml": PLANS + "  pro: {}\n"}, BILLING_PLAN_DEFAULT="pro").rules.version,
        load_it({"policies/plans.yaml": PLANS + "  pro: {}\n"}).rules.version,
    }
    assert len(versions) == 6
    assert load_it().rules.version == first


# --- size


def test_five_thousand_policies_and_a_thousand_plans_load_in_two_seconds(load_it: LoadIt) -> None:
    policies_text = "policies:\n" + "".join(
        f"  - name: cast{n}\n    match: {{methods: [POST], path: /v1/cast/{n}}}\n"
        f"    cost: {{fixed: {{cents: 0.{n:04d}}}}}\n"
        "    rate_limits:\n      - {name: per-account, limit: 60, window: 1m}\n"
        for n in range(5000)
    )
    plans = "plans:\n  free: {}\n" + "".join(
        f"  plan{n}: {{hard_limit_cents: {{monthly: {n}}}, rate_limits: {{per-account: {{limit: 5}}}}}}\n"
        for n in range(1000)
    )
    began = time.process_time()
    rules = load_it({"policies/cast.yaml": policies_text, "policies/plans.yaml": plans}).rules
    assert time.process_time() - began < 2
    assert (len(rules.policies), len(rules.plans)) == (5000, 1001)


# --- workers


def test_workers_are_as_many_as_the_cores_where_nothing_else_is_said(load_it: LoadIt) -> None:
    cores = len(os.sched_getaffinity(0))
    assert load_it().settings.workers == cores
    assert load_it({"config.yaml": CONFIG + "workers: auto\n"}).settings.workers == cores
    assert load_it({"config.yaml": CONFIG + "workers: 3\n"}).settings.workers == 3
