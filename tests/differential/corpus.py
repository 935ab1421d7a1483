"""The corpus: raw requests as data, in ``corpus/*.yaml``.

    - name: "Content-Length: a plus"
      raw: "POST /x HTTP/1.1\\r\\nHost: c000\\r\\nContent-Length: +3\\r\\n\\r\\nabc"
      expect: "400 closed"
      why: strict-lengths

``raw`` is the bytes of a connection, one character each (latin-1); or a list of texts and ``{repeat: text, times: n}``.
``c000`` becomes a host of the case's own. ``partial`` requests wait for more that does not come. ``expect`` is what
Castgate makes of it (``observing.Outcome``), ``why`` the rule of ``rules.yaml`` that says why others differ.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "corpus"
RULES = Path(__file__).parent / "rules.yaml"
_HOST = b"c000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One connection's worth of bytes. ``host`` tells its requests from other cases'."""

    name: str
    family: str
    host: bytes
    raw: bytes
    partial: bool
    expect: str
    why: str | None


def read_corpus() -> list[Case]:
    """Every case, in the order of the files."""
    cases: list[Case] = []
    for path in sorted(FOLDER.glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
            host = b"c%03d" % (len(cases) + 1)
            raw = _bytes(entry.pop("raw")).replace(_HOST, host).replace(_HOST.upper(), host.upper())
            case = Case(
                name=entry.pop("name"),
                family=path.stem,
                host=host,
                raw=raw,
                partial=entry.pop("partial", False),
                expect=entry.pop("expect", ""),
                why=entry.pop("why", None),
            )
            assert not entry, f"{path.name}: {case.name}: unknown keys {sorted(entry)}"
            cases.append(case)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases have one name"
    return cases


def read_rules() -> dict[str, str]:
    """Why Castgate differs from others, by the name of the rule."""
    rules: dict[str, str] = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return rules


def _bytes(raw: Any) -> bytes:
    if isinstance(raw, str):
        return raw.encode("latin-1")
    return b"".join(
        part.encode("latin-1") if isinstance(part, str) else part["repeat"].encode("latin-1") * part["times"]
        for part in raw
    )
