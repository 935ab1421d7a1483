"""``./dev test -p tests.compiled_plugin …``: these tests run what was compiled, not the sources."""

from gateway import compiled

if reason := compiled.use():
    raise SystemExit(f"nothing compiled to test: {reason}")
