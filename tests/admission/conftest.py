from collections.abc import Iterator

import pytest

from tests.admission.script import Script


@pytest.fixture
def script(redis_url: str) -> Iterator[Script]:
    script = Script(redis_url)
    yield script
    script.close()
