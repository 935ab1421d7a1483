"""Configuration: YAML and environment in, frozen settings and rules out, or every mistake at once.

What reads (``load``, ``Settings``) is imported when it is first asked for: workers read nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gateway.config.errors import ConfigError, Position, Problem
from gateway.config.loaded import Loaded

if TYPE_CHECKING:
    from gateway.config.loading import load
    from gateway.config.settings import Settings

__all__ = ["ConfigError", "Loaded", "Position", "Problem", "Settings", "load"]

_READERS = {"Settings": "gateway.config.settings", "load": "gateway.config.loading"}


def __getattr__(name: str) -> Any:
    if name not in _READERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_READERS[name]), name)
