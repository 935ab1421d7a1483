"""policies/schema.json: what editors complete and check policy files by, made of the models that read them.

A test holds that the file in the repository is what this makes. What no schema can say (two policies for one route, a
plan that is nowhere) is for ``castgate check``.
"""

import json
from typing import Any

from gateway.config.policies import PoliciesFile

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def policies_schema() -> dict[str, Any]:
    """The JSON Schema of one file of the policies' folder."""
    schema = _plain(PoliciesFile.model_json_schema(by_alias=True))
    return {"$schema": _DIALECT, "title": "Castgate policies and plans", **schema}


def policies_schema_text() -> str:
    """The same as the file's text."""
    return json.dumps(policies_schema(), indent=2, ensure_ascii=False) + "\n"


def _plain(schema: Any) -> Any:
    """Without titles, which only repeat the keys, and without defaults that are not written in a file like that."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {
        key: {name: _plain(below) for name, below in value.items()} if key in ("properties", "$defs") else _plain(value)
        for key, value in schema.items()
        if key != "title" and not (key == "default" and not isinstance(value, str))
    }
    options = plain.get("anyOf", ())
    if len(options) == 2 and "$ref" in options[0] and options[1] == {"type": "null"}:
        plain.pop("anyOf")  # a section that may be left out; written, it has keys
        plain |= options[0]
    return plain
