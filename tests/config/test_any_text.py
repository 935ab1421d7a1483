"""Whatever stands in a file, loading ends with a configuration or with ConfigError."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import ConfigError, load
from tests.config.good_files import CAST, CONFIG, ENVIRON, PLANS

SECTIONS = ["policies", "plans", "listen", "upstream", "record", "match", "cost", "fixed", "rate_limits", "cast_id"]
VALUES = ["name", "methods", "path", "cents", "limit", "window", "json", "monthly", "time_zone", "port", "url"]
KEYS = st.sampled_from([*SECTIONS, *VALUES])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["1m", "/v1", "$", "${", "${A}"])
)
TREES = st.recursive(
    SCALARS, lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), below, max_size=5)
)
CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet="-:?[]{}&*!|>'\"%@`#, \n\tab1$", max_size=60).map(str.encode),
    TREES.map(lambda tree: yaml.safe_dump(tree).encode("utf-8", "surrogatepass")),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("any")
    (path / "policies").mkdir()
    return path


def refusal_of(folder: Path, environ: Mapping[str, str]) -> list[str]:
    """The lines of the error, none where the files are accepted; any other exception passes."""
    try:
        load(folder / "config.yaml", environ)
    except ConfigError as error:
        return str(error).splitlines()
    return []


@settings(max_examples=400, deadline=None)
@given(which=st.sampled_from(["config.yaml", "policies/cast.yaml", "policies/plans.yaml"]), content=CONTENTS)
def test_any_file_loads_or_is_refused_in_words(which: str, content: bytes, folder: Path) -> None:
    for name, text in {"config.yaml": CONFIG, "policies/cast.yaml": CAST, "policies/plans.yaml": PLANS}.items():
        (folder / name).write_bytes(content if name == which else text.encode())
    assert all(line.startswith(str(folder)) for line in refusal_of(folder, ENVIRON))


@settings(max_examples=100, deadline=None)
@given(values=st.fixed_dictionaries({}, optional={name: st.text(max_size=20) for name in ENVIRON}))
def test_any_environment_loads_or_is_refused_in_words(values: dict[str, str], folder: Path) -> None:
    for name, text in {"config.yaml": CONFIG, "policies/cast.yaml": CAST, "policies/plans.yaml": PLANS}.items():
        (folder / name).write_text(text)
    places = (str(folder), "environment: COST_PER_CAST_CENTS: ")
    assert all(line.startswith(places) for line in refusal_of(folder, {**ENVIRON, **values}))
