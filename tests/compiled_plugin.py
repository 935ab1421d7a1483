"""``./dev test -p tests.compiled_plugin …``: these tests run what was compiled, not the sources."""

import pytest

from gateway import compiled

if reason := compiled.use():
    raise SystemExit(f"nothing compiled to test: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    """Each test begins with filters of its own, which make errors of warnings."""
    config.addinivalue_line("filterwarnings", f"ignore:{compiled.THROW_WARNING}:DeprecationWarning")
