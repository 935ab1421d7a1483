"""The files in the repository: complete, and no different from what the program does without them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from gateway.config import ConfigError, Settings, load

ROOT = Path(__file__).parents[2]
URLS = {
    "UPSTREAM_URL": "http://127.0.0.1:3000",
    "DATABASE_URL": "postgresql:///castgate?host=/run/postgresql",
    "REDIS_URL": "unix:///run/redis.sock",
}


def test_the_shipped_configuration_says_what_the_defaults_are() -> None:
    sections = {"upstream": "UPSTREAM_URL", "database": "DATABASE_URL", "redis": "REDIS_URL"}
    bare = Settings.model_validate({section: {"url": URLS[name]} for section, name in sections.items()})
    assert load(ROOT / "config.yaml", URLS).settings == bare


def test_the_shipped_configuration_names_every_key_there_is() -> None:
    text = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert set(_leaves_of_data(text)) == set(_leaves_of_model(Settings))


def test_the_shipped_policies_are_those_of_the_design() -> None:
    loaded = load(ROOT / "config.yaml", {**URLS, "COST_PER_CAST_CENTS": "1"})
    (cast,) = loaded.rules.policies
    assert (cast.name, cast.methods, cast.path, cast.mode) == ("cast", frozenset({"POST"}), "/v1/cast", "enforce")
    assert (cast.cost.fixed_microcents, cast.cost.charge_when) == (1_000_000, "success")
    assert (cast.cast_id_pointer, cast.on_store_failure) == ("/id", "allow")
    (limit,) = cast.rate_limits
    assert (limit.name, limit.key, limit.limit, limit.window_ms) == ("per-account", "account", 60, 60_000)
    assert limit.algorithm == "sliding_window"
    ceilings = {
        name: [budget.hard_limit_microcents for budget in plan.budgets] for name, plan in loaded.rules.plans.items()
    }
    assert ceilings == {"free": [500_000_000], "pro": [50_000_000_000], "unlimited": []}
    assert loaded.rules.plans["pro"].rate_limits == {"per-account": 600}
    assert loaded.rules.plan_of(None).name == "free"


def test_the_variables_of_the_design_have_their_place() -> None:
    environ = {
        **URLS,
        "PORT": "0",
        "ADMIN_PORT": "0",
        "STRIPE_SECRET_KEY": "sk_test_1",
        "STRIPE_WEBHOOK_SECRET": "whsec_1",
        "STRIPE_API_BASE": "http://127.0.0.1:12111",
        "COST_PER_CAST_CENTS": "0.25",
        "RATE_LIMIT_PER_MINUTE": "7",
        "BILLING_PLAN_DEFAULT": "pro",
    }
    loaded = load(ROOT / "config.yaml", environ)
    settings = loaded.settings
    assert (settings.listen.port, settings.admin.port) == (0, 0)
    assert [(one.host, one.port) for one in settings.upstream.addresses] == [("127.0.0.1", 3000)]
    assert settings.billing.stripe_api_base == "http://127.0.0.1:12111"
    assert settings.billing.stripe_secret_key is not None
    assert settings.billing.stripe_secret_key.get_secret_value() == "sk_test_1"
    assert loaded.rules.policies[0].cost.fixed_microcents == 250_000
    assert loaded.rules.policies[0].rate_limits[0].limit == 7
    assert loaded.rules.default_plan == "pro"
    assert loaded.billing_enabled


def test_nothing_listens_wider_than_it_was_asked_to() -> None:
    settings = load(ROOT / "config.yaml", URLS).settings
    assert (settings.listen.host, settings.admin.host) == ("127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "::1", "localhost"])
def test_on_loopback_the_admin_listener_needs_no_token(host: str) -> None:
    assert load(ROOT / "config.yaml", {**URLS, "ADMIN_HOST": host}).settings.admin.token is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "gateway.internal"])
def test_elsewhere_it_needs_one(host: str) -> None:
    with pytest.raises(ConfigError, match=r"admin\.token: expected a token"):
        load(ROOT / "config.yaml", {**URLS, "ADMIN_HOST": host})
    environ = {"ADMIN_HOST": host, "ADMIN_TOKEN": "0123456789abcdef", "ADMIN_OPEN_PATHS": "/metrics, /readyz"}
    admin = load(ROOT / "config.yaml", {**URLS, **environ}).settings.admin
    assert admin.open_paths == ("/metrics", "/readyz")
    assert "0123456789abcdef" not in repr(admin)


def test_without_any_variable_the_three_addresses_are_asked_for() -> None:
    with pytest.raises(ConfigError) as caught:
        load(ROOT / "config.yaml", {})
    assert [problem.key for problem in caught.value.problems] == ["upstream.url", "database.url", "redis.url"]


def _leaves_of_data(value: object, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves_of_data(below, f"{path}.{key}")
    else:
        yield path


def _leaves_of_model(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, entry in model.model_fields.items():
        here = f"{path}.{entry.alias or name}"
        if isinstance(entry.annotation, type) and issubclass(entry.annotation, BaseModel):
            yield from _leaves_of_model(entry.annotation, here)
        else:
            yield here
