"""What is measured: the servers that can stand in front of the upstream, and the rows of the table.

To add a peer, write a function that turns a Place into its command line (it may write configuration files into
``place.folder``), give it a Target, and give the Target one Row or several.
"""

import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.fast_upstream import CAST_ANSWER
from bench.generators import Request

REPOSITORY = Path(__file__).resolve().parent.parent
CAST_PATH = "/v1/cast"
PLAIN_PATH = "/v1/plain"  # no policy matches it
CAST_BODY = '{"input":"a spell of light"}'
COST_PER_CAST_CENTS = 1
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How to run a server: the words of its command line, and what it needs in its environment."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def found_program(name: str) -> str | None:
    """Where a program is. Debian keeps servers in /usr/sbin, which is on the path of root alone."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A program on the path, or a Python module, and what makes it be there."""

    install: str
    program: str = ""
    module: str = ""

    @property
    def met(self) -> bool:
        """Whether it is there."""
        if self.program:
            return found_program(self.program) is not None
        return importlib.util.find_spec(self.module) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server to measure. It gets a core to itself; ``needs`` that are not met leave its rows out."""

    name: str
    command: Callable[[Place], Command]
    needs: tuple[Need, ...] = ()
    stores: bool = False  # needs Postgres and Redis, with the account in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: a target under a load."""

    name: str  # for --only, and in JSON
    title: str
    target: Target
    path: str = CAST_PATH
    charged: bool = False  # each 200 must be in the ledger

    def request(self, api_key: str) -> Request:
        """What is asked. Every row sends the same bytes but for the path, so that all parse the same."""
        headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        return Request(method="POST", path=self.path, headers=headers, body=CAST_BODY)


NGINX = Need(program="nginx", install="apt-get install nginx")

_NGINX_UPSTREAM = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000; keepalive_timeout 1h; default_type application/json;
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 '{answer}'; }} }}
}}
"""


def upstream_command(place: Place) -> Command:
    """The service behind all proxies: nginx where it is installed, ``bench.fast_upstream`` where it is not."""
    program = found_program(NGINX.program)
    if program is None:
        return Command(words=(sys.executable, "-m", "bench.fast_upstream", "--port", str(place.port)))
    configuration = place.folder / "nginx-upstream.conf"
    configuration.write_text(_NGINX_UPSTREAM.format(folder=place.folder, port=place.port, answer=CAST_ANSWER.decode()))
    return Command(words=(program, "-p", str(place.folder), "-c", str(configuration)))


def _aiohttp_proxy(place: Place) -> Command:
    words = (sys.executable, "-m", "bench.aiohttp_proxy", "--port", str(place.port), "--upstream", place.upstream_url)
    return Command(words=words)


def _castgate(place: Place) -> Command:
    """Castgate as it is shipped: config.yaml and policies/ of the repository, told the rest by the environment."""
    words = (sys.executable, "-m", "gateway", "serve", "--config", str(REPOSITORY / "config.yaml"))
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
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "info",
    }


UPSTREAM = Target(name="upstream", command=upstream_command)
AIOHTTP_PROXY = Target(name="aiohttp", command=_aiohttp_proxy)
CASTGATE = Target(name="castgate", command=_castgate, stores=True)

ROWS = (
    Row(name="direct", title="upstream directly", target=UPSTREAM),
    Row(name="aiohttp", title="bare aiohttp proxy", target=AIOHTTP_PROXY),
    Row(name="castgate-plain", title="Castgate, no policy", target=CASTGATE, path=PLAIN_PATH),
    Row(name="castgate", title="Castgate, everything on", target=CASTGATE, charged=True),
)
BASELINE = "aiohttp"  # the row that all others are divided by
