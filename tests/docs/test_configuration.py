"""docs/configuration.md is what the models make, and says something of every key that there is."""

import re

from gateway.config.policies import PolicySpec
from gateway.config.settings import Settings
from scripts.configuration_docs import TARGET, document


def test_it_is_current() -> None:
    assert TARGET.read_text() == document(), "run ./dev docs"


def test_every_section_and_key_is_there_with_what_may_stand_there() -> None:
    text = document()
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, re.MULTILINE)
    keys = {key for key, _ in rows}
    assert {field.alias or name for name, field in PolicySpec.model_fields.items()} <= {
        re.split(r"[.\[]", key)[0] for key in keys
    }
    for name, field in Settings.model_fields.items():
        assert f"### {name}\n" in text or (field.alias or name) in keys, name
    for key, rest in rows:
        cells = re.split(r"(?<!\\) \| ", rest)
        assert cells[-2].strip(), f"{key} does not say what may stand there"


def test_what_a_reader_of_values_expects_is_told_with_its_bounds() -> None:
    text = document()
    assert "| `drain_timeout` | `10s` | `DRAIN_TIMEOUT` | a duration of 0s to 1h |" in text
    assert "| `pool_max` | `6` |  | an integer of 1 to 100 | connections of each worker" in text
    assert "| `on_orphan` | `charge` | one of charge, void |" in text
