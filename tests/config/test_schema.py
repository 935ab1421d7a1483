"""The JSON Schema that editors read: current, and of one mind with the loader wherever a schema can be."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from gateway.config.schema import policies_schema, policies_schema_text
from tests.config.good_files import CAST, PLANS, LoadIt
from tests.config.test_bad_policies import DEFECTS

ROOT = Path(__file__).parents[2]
# What only the environment, the other keys of a section, or a list of zones and words can tell.
BEYOND_SCHEMAS = (
    *("a price too fine", "a price beyond all money", "nothing to hold", "a hold of nothing"),
    *("a free tier without a cost", "a free tier of more than can be counted", "a free tier of what has no price"),
    *("a hold above the maximum", "a hold below the minimum", "a minimum above the maximum"),
    *("a hold for a fixed cost", "two costs", "an empty item of a sum", "two costs in an item of a sum"),
    *("too many costs", "a window too long", "a key that lives too long", "a key twice"),
    *("an account of callers without one", "calls at once of callers without an account"),
    *("a weight above the limit", "a weight above the burst", "a plan's limit below what a call weighs"),
    *("a weight of calls at once", "a weight that a call tells, of calls at once"),
    # A pattern has no way to say: but not these, in whatever case.
    *("a weight by the framing", "a key that the gateway writes", "an idempotency header of the connection"),
    *("a usual weight above the most", "a usual weight above the limit"),
)
validator = jsonschema.Draft202012Validator(policies_schema())


def test_the_schema_in_the_repository_is_current() -> None:
    assert (ROOT / "policies" / "schema.json").read_text() == policies_schema_text(), (
        "castgate schema --output policies/schema.json writes it anew"
    )


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(policies_schema())


@pytest.mark.parametrize("path", sorted((ROOT / "policies").glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_files_fit_it_and_name_it(path: Path) -> None:
    text = path.read_text()
    validator.validate(yaml.safe_load(text))
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")


def test_numbers_texts_and_variables_fit_wherever_the_loader_takes_them(load_it: LoadIt) -> None:
    text = """\
policies:
  - name: cast
    match: {methods: [POST], path: /v1/*}
    mode: "${MODE:-shadow}"
    cost:
      sum:
        - {fixed: {cents: 0.5}}
        - {header: {name: X-Tokens, cents_per_unit: "0.00003"}}
        - {json: {pointer: /a~1b/0, cents_per_unit: 1, events: sum}}
        - {duration: {cents_per_ms: "${PRICE:-0.1}"}}
        - {bytes: {of: both, cents_per_byte: "0.000000000000000001"}}
      hold_cents: "7.25"
      maximum_cents: 10
      charge_when: [200, "201", "${STATUS:-404}"]
    rate_limits:
      - {name: a, limit: "60", window: 1m, algorithm: token_bucket, burst: "${BURST:-9}", mode: shadow}
      - {name: b, key: "header:X-Tenant", limit: 4, algorithm: concurrency}
plans:
  pro: {stripe_price: , hard_limit_cents: {weekly: 5.5}, week_start: sunday, time_zone: Asia/Tokyo}
  max: {stripe_price: price_1, rate_limits: {a: {limit: 1}}}
"""
    validator.validate(yaml.safe_load(text))
    load_it({"policies/cast.yaml": text})


@pytest.mark.parametrize("defect", DEFECTS)
def test_what_the_loader_refuses_an_editor_marks_where_a_schema_can(defect: str) -> None:
    files, _ = DEFECTS[defect]
    merged = {"policies/cast.yaml": CAST, "policies/plans.yaml": PLANS, **files}
    is_marked = any(not validator.is_valid(yaml.safe_load(text)) for text in merged.values())
    assert is_marked == (defect not in BEYOND_SCHEMAS)
