"""A real Prometheus reads two gateways; what its queries answer is what the load client counted."""

import asyncio
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.embedded import free_port
from tests.gateways import migrated, running_gateway
from tests.load import cast_many
from tests.upstream_stub.running import Account, create_account, stub_process

ROOT = Path(__file__).parents[2]
PROGRAM = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no Prometheus here; `apt-get install --no-install-recommends prometheus` installs it"
)
TOKEN = "0123456789-of-prometheus"
WAIT_S = 30.0


class Prometheus:
    def __init__(self, url: str) -> None:
        self._url = url

    def value(self, query: str) -> float | None:
        """The one number that the query comes to; None while there is none."""
        asked = f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                found = json.load(answer)["data"]["result"]
        except (urllib.error.URLError, ConnectionError):
            return None
        assert len(found) < 2, found
        return float(found[0]["value"][1]) if found else None

    def becomes(self, query: str, is_so: Callable[[float], bool]) -> float | None:
        """The value once it is so; the last one where it never was."""
        deadline_s = time.monotonic() + WAIT_S
        while ((found := self.value(query)) is None or not is_so(found)) and time.monotonic() < deadline_s:
            time.sleep(0.2)
        return found


@contextmanager
def prometheus(folder: Path, admin_urls: list[str]) -> Iterator[Prometheus]:
    """With the shipped configuration and rules, looking every second in place of every fifteen."""
    (folder / "token").write_text(TOKEN)
    targets = ", ".join(f'"{url.removeprefix("http://")}"' for url in admin_urls)
    config = (
        (ROOT / "ops" / "prometheus" / "prometheus.yml")
        .read_text()
        .replace("15s", "1s")
        .replace("rules.yml", str(ROOT / "ops" / "prometheus" / "rules.yml"))
        .replace("/etc/prometheus/castgate-token", str(folder / "token"))
        .replace('"127.0.0.1:9090"', targets)
    )
    (folder / "prometheus.yml").write_text(config)
    address = f"127.0.0.1:{free_port()}"
    options = [f"--web.listen-address={address}", f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(PROGRAM), f"--config.file={folder / 'prometheus.yml'}", *options], stdout=log, stderr=log
        )
    try:
        yield Prometheus(f"http://{address}")
        assert process.poll() is None, (folder / "log").read_text()
    finally:
        process.terminate()
        process.wait(10)


async def _cast(urls: list[str], account: Account) -> dict[int, int]:
    return dict(await cast_many(urls, account.api_key, total=400, connections=20))


@pytest.mark.timeout(150)
def test_what_it_says_is_what_was_counted(database_url: str, redis_url: str, tmp_path: Path) -> None:
    stores = {"database_url": database_url, "redis_url": redis_url}
    with stub_process(**stores, rate_limit_per_minute=0) as stub:
        migrated(database_url)
        account = asyncio.run(create_account(database_url))
        environ = {"ADMIN_TOKEN": TOKEN, "RATE_LIMIT_PER_MINUTE": "150"}
        running = {**stores, "upstream_url": stub.base_url, "environ": environ}
        with running_gateway(**running) as one, running_gateway(**running, workers=2) as two:
            counted = asyncio.run(_cast([one.base_url, two.base_url], account))
            assert counted == {200: 150, 429: 250}
            with prometheus(tmp_path, [one.admin_url, two.admin_url]) as server:
                assert server.becomes('sum(up{job="castgate"})', lambda found: found == 2) == 2
                assert server.value('sum(spell_cast_total{policy="cast", status="200"})') == counted[200]
                assert server.value("sum(spell_cast_duration_seconds_count)") == counted[200]
                assert server.value("sum(rate_limited_total)") == counted[429]
                assert server.value('sum(castgate_requests_total{kind="policy"})') == 400
                assert server.value("sum(castgate_workers_ready)") == 3
                assert server.value("sum(castgate_workers_wanted)") == 3
                assert server.value("sum(castgate_database_pool_max)") == 3 * 6
                delays = server.becomes("sum(castgate_event_loop_delay_seconds_count)", lambda found: found > 0)
                assert delays is not None
                assert delays > 0
                assert server.value("max(castgate_ledger_lag_seconds)") == 0
                assert server.value('sum(castgate_breakers_open{store="redis"})') == 0
                assert server.value("count(count by (version) (castgate_config_info))") == 1
                # What the shipped rules record needs some looks; none of their alerts fires.
                query = 'sum(castgate:casts:rate5m{status="200"})'
                assert server.becomes(query, lambda found: found >= 0) is not None
                assert server.value('count(ALERTS{alertstate="firing"})') is None
