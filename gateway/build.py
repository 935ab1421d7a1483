"""Which Castgate this is."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def build_version() -> str:
    """The version of the installed package; ``unknown`` where it is not installed."""
    try:
        return version("castgate")
    except PackageNotFoundError:
        return "unknown"
