"""What workers are given says the same as what was read, and brings nothing along."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from gateway.config import Loaded, load
from gateway.config.loaded import Values

CONFIG = """
workers: 3
upstream: {url: "http://one.test:81,unix:/run/two.sock", dns_ttl: "${TTL}"}
database: {url: "postgresql://castgate:geheim@db.test/casts"}
redis: {url: "redis+cluster://:geheim@one.test,two.test"}
forwarding: {trusted_proxies: [10.0.0.0/8]}
billing: {stripe_secret_key: "${STRIPE_SECRET_KEY}", stripe_webhook_secret: "${STRIPE_WEBHOOK_SECRET}"}
traces: {headers: "x-one=1,x-two=2"}
"""
POLICIES = """
policies:
  - {name: cast, match: {methods: [POST], path: "${CAST_PATH}"}, cost: {fixed: {cents: 1}}}
plans:
  free: {hard_limit_cents: {monthly: 5}}
"""
VARIABLES = {
    "STRIPE_SECRET_KEY": "sk_test_geheim0123456789",
    "STRIPE_WEBHOOK_SECRET": "whsec_geheim0123456789",
    "COST_PER_CAST_CENTS": "1",
    "CAST_PATH": "/v1/cast",
    "TTL": "30s",
}
# In a process that has not read any configuration.
_READS = """
import pickle, sys
from pathlib import Path
loaded = pickle.loads(Path(sys.argv[1]).read_bytes())
assert loaded.settings.upstream.addresses[1].path == "/run/two.sock"
print(*sorted(sys.modules.keys() & {"pydantic", "pydantic_core", "yaml", "gateway.config.settings"}))
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "all.yaml").write_text(POLICIES)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return load(tmp_path / "config.yaml", VARIABLES)


def same(model: object, value: object, path: str = "settings") -> int:
    """How many settings are the same in both; fails at the first that is not."""
    if isinstance(model, BaseModel):
        assert isinstance(value, Values), path
        ours = [kind for kind in type(model).__mro__ if kind.__module__.startswith("gateway.")]
        names = {name for kind in ours for name, member in vars(kind).items() if isinstance(member, property)}
        return sum(
            same(getattr(model, name), getattr(value, name), f"{path}.{name}")
            for name in sorted(names | set(type(model).model_fields))
        )
    if isinstance(model, SecretStr):
        assert value.get_secret_value() == model.get_secret_value(), path  # type: ignore[attr-defined]
        assert "geheim" not in repr(value)
        return 1
    assert value == model, path
    assert type(value) in (str, type(model)), path
    return 1


def test_values_say_what_the_models_say(loaded: Loaded) -> None:
    values = pickle.loads(pickle.dumps(loaded.as_values()))
    assert same(loaded.settings, values.settings) > 80
    assert values.settings.redis.partitions == 16
    assert values.settings.traces.header_fields == {"x-one": "1", "x-two": "2"}
    assert values.settings.billing.stripe_webhook_secrets == (VARIABLES["STRIPE_WEBHOOK_SECRET"],)
    assert (values.rules, values.billing_enabled, values.files) == (loaded.rules, True, loaded.files)


def test_values_bring_no_models_along(loaded: Loaded, tmp_path: Path) -> None:
    file = tmp_path / "pickle"
    file.write_bytes(pickle.dumps(loaded.as_values()))
    ended = subprocess.run([sys.executable, "-c", _READS, str(file)], capture_output=True, text=True, check=False)
    assert (ended.stdout.strip(), ended.stderr) == ("", "")


def test_values_are_frozen_and_not_shown(loaded: Loaded) -> None:
    values = loaded.as_values().settings
    with pytest.raises(AttributeError, match="'workers' cannot be changed"):
        values.workers = 1
    with pytest.raises(AttributeError, match="no setting 'worker'"):
        _ = values.worker  # type: ignore[attr-defined]
    assert "geheim" not in repr(values) + repr(values.database) + repr(values.billing)
