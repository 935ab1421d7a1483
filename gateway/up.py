"""``./dev up``: Castgate and all that it needs, on one machine, out of one folder.

Started in this order, and stopped in the reverse one: Postgres, Redis, the demo account (and with it Phase 1's
tables), our own tables, the stand-ins for Phase 1 and for Stripe, the gateway. What the environment names by
DATABASE_URL, REDIS_URL, UPSTREAM_URL, or STRIPE_API_BASE or STRIPE_SECRET_KEY, is used instead of being started.
"""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from gateway import migrate
from gateway.children import ChildError, Children, Stopped
from gateway.embedded import HOST, EmbeddedError, embedded_postgres, embedded_redis, exclusive, free_port
from gateway.listening import ListenError, listen
from gateway.progress import LogPump, Progress
from gateway.up_stripe import StripeChoice, choose_stripe, price_words

ROOT = Path(__file__).resolve().parent.parent
# The gateway ends by itself when its drain time-out is over, whatever that is set to; this is for one that hangs.
GATEWAY_STOP_TIMEOUT_S = 600.0
STUB_STOP_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 1.0
SIGNAL_POLL_S = 0.05
TAIL_LINES = 15
PHASE_1 = "Phase 1 stub"
STRIPE = "Stripe stub"
ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


class UpError(RuntimeError):
    """Why it cannot start; the text is for the person at the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``./dev up`` was asked for. Port 0: any free one. ``workers`` 0: as configured."""

    port: int
    admin_port: int
    workers: int
    data_dir: Path
    ephemeral: bool


class _Up:
    def __init__(self, options: Options) -> None:
        self._options = options
        self._folder = options.data_dir.resolve()
        self._progress = Progress()
        self._environment = dict(os.environ)
        if config := self._environment.get("CASTGATE_CONFIG"):
            self._environment["CASTGATE_CONFIG"] = str(Path(config).resolve())  # children run elsewhere
        self._children = Children(ROOT, self._environment)

    def run(self) -> int:
        """Everything, from the first check to the last stop; the answer is the exit code."""
        self._children.handle_signals()
        try:
            with contextlib.ExitStack() as stack:
                try:
                    self._start(stack)
                    self._children.wait()
                except Stopped as signal_name:
                    self._progress.say(f"stopping ({signal_name}); a second one skips the wait for calls under way")
                except (UpError, ChildError, EmbeddedError, ListenError, migrate.MigrateError) as error:
                    self._progress.fail(str(error))
                    return 1
        except OSError as error:
            self._progress.fail(str(error))
            return 1
        self._progress.say("stopped, nothing is left running")
        return 0

    def _start(self, stack: contextlib.ExitStack) -> None:
        progress, folder = self._progress, self._folder
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)  # what is below is closed, but Postgres' user passes here
        try:
            stack.enter_context(exclusive(folder, "the data folder"))
        except EmbeddedError as error:
            raise UpError(f"{error}; give each ./dev up its own --data-dir") from None
        demo = folder / "demo.json"
        demo.unlink(missing_ok=True)
        base_url, admin_url = self._choose_ports()

        how = " (ephemeral)" if self._options.ephemeral else ""
        progress.say(f"{progress.bold('castgate')} starts in {self._options.data_dir}{how}")
        self._start_stores(stack)
        account = self._make_account()
        self._migrate()
        stripe = self._start_services(stack, base_url, admin_url)

        stack.callback(demo.unlink, missing_ok=True)
        told = {
            "base_url": base_url,
            "admin_url": admin_url,
            "upstream_url": self._environment["UPSTREAM_URL"],
            "stripe_url": stripe.url,
            "database_url": self._environment["DATABASE_URL"],
            "redis_url": self._environment["REDIS_URL"],
            "api_key": account["api_key"],
            "account_id": account["account_id"],
        }
        _write_privately(demo, json.dumps(told, indent=2) + "\n")
        self._invite(base_url, admin_url, account["api_key"], can_pay=stripe.can_pay)
        took_s = time.monotonic() - progress.started_s
        progress.say(f"ready on {base_url} (admin {admin_url}) in {took_s:.1f} s; all addresses: {demo}")

    def _choose_ports(self) -> tuple[str, str]:
        """The two addresses to serve on, both free at this moment, before anything is started."""
        host = self._environment.get("HOST") or HOST
        admin_host = self._environment.get("ADMIN_HOST") or HOST
        with contextlib.ExitStack() as probes:
            urls = []
            for variable, option, address, wanted in (
                ("PORT", "--port", host, self._options.port),
                ("ADMIN_PORT", "--admin-port", admin_host, self._options.admin_port),
            ):
                try:
                    probe = probes.enter_context(listen(address, wanted, count=1, backlog=1)[0])
                except ListenError as error:
                    raise UpError(f"{error}; choose another with {option}") from None
                port = probe.getsockname()[1]
                self._environment[variable] = str(port)
                urls.append(_url(address, port))
        return urls[0], urls[1]

    # The parts, in order

    def _start_stores(self, stack: contextlib.ExitStack) -> None:
        ephemeral = self._options.ephemeral
        place = self._folder / "ephemeral" if ephemeral else self._folder
        if ephemeral:
            shutil.rmtree(place / "spool", ignore_errors=True)
        self._environment.setdefault("SPOOL_DIR", str(place / "spool"))
        for variable, name, embedded in (
            ("DATABASE_URL", "Postgres", embedded_postgres),
            ("REDIS_URL", "Redis", embedded_redis),
        ):
            with self._progress.step(name) as step:
                if self._environment.get(variable, "").strip():
                    step.detail = f"the one of {variable}"
                    continue
                server = stack.enter_context(
                    embedded(place / name.lower(), ephemeral=ephemeral, while_waiting=self._children.check)
                )
                self._children.watch(name, server.process)
                self._environment[variable] = server.url
                step.detail = f"{HOST}:{server.port}"

    def _make_account(self) -> dict[str, str]:
        """The demo account, with the same key at every start on one folder, and the tables that it lives in."""
        kept = self._folder / "demo-key"
        with self._progress.step("demo account") as step:
            known = kept.read_text().strip() if kept.exists() and not self._options.ephemeral else ""
            arguments = ["--api-key", known] if known else []
            account: dict[str, str] = json.loads(
                self._children.finish("demo account", "-m", "upstream_stub.seed", *arguments)
            )
            if not self._options.ephemeral:
                _write_privately(kept, account["api_key"])
            step.detail = account["email"]
        return account

    def _migrate(self) -> None:
        """Our tables; in this process, as importing all that a child needs would take longer than the work."""
        lines: list[str] = []
        with self._progress.step("migrations") as step:
            asyncio.run(self._unless_stopped(self._migrate_reporting(lines)))
            step.detail = lines[0] if len(lines) == 1 else f"{len(lines)} done"

    async def _migrate_reporting(self, lines: list[str]) -> None:
        migrations = migrate.read_migrations(migrate.default_folder())
        await migrate.migrate(self._environment["DATABASE_URL"], migrations, report=lines.append)

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        try:
            while not (await asyncio.wait([task], timeout=SIGNAL_POLL_S))[0]:
                self._children.check()
            await task
        finally:
            task.cancel()

    def _start_services(self, stack: contextlib.ExitStack, base_url: str, admin_url: str) -> StripeChoice:
        """The stand-ins and the gateway, side by side: most of their starts is importing."""
        given_url = self._environment.get("UPSTREAM_URL", "").strip()
        if not given_url:
            port = free_port()
            self._spawn_stub(stack, PHASE_1, "upstream_stub", port)
            self._environment["UPSTREAM_URL"] = _url(HOST, port)
        stripe_port = self._stripe_port()
        stripe = choose_stripe(self._environment, _url(HOST, stripe_port))
        self._fill_in(stripe.defaults)
        if stripe.starts_stub:
            self._spawn_stripe(stack, stripe_port, base_url)
        self._spawn_gateway(stack, base_url, admin_url)

        with self._progress.step("Phase 1" if given_url else PHASE_1) as step:
            if not given_url:
                self._await_stub(PHASE_1, "upstream_stub")
            step.detail = self._environment["UPSTREAM_URL"]
        with self._progress.step(STRIPE if stripe.starts_stub else "Stripe") as step:
            if stripe.starts_stub:
                self._await_stub(STRIPE, "stripe_stub")
            step.detail = stripe.detail
        token = self._environment.get("ADMIN_TOKEN", "").strip()
        with self._progress.step("gateway") as step:
            self._children.wait_until("gateway", lambda: _all_workers_are_ready(admin_url, token))
            step.detail = base_url
        return stripe

    def _spawn_stub(self, stack: contextlib.ExitStack, name: str, module: str, port: int, *more: str) -> None:
        words = ("-m", module, "--port", str(port), *more)
        with self._log_of(module).open("wb") as output:
            stack.enter_context(
                self._children.running(name, *words, stop_timeout_s=STUB_STOP_TIMEOUT_S, stdout=output, stderr=output)
            )

    def _spawn_stripe(self, stack: contextlib.ExitStack, port: int, base_url: str) -> None:
        """It signs with STRIPE_WEBHOOK_SECRET, which it reads from the environment as the gateway does."""
        more = ["--webhook-url", f"{base_url}/webhooks/stripe", *price_words(self._environment)]
        if not self._options.ephemeral:
            (self._folder / "stripe-port").write_text(f"{port}\n")
            more += ["--data", str(self._folder / "stripe.json")]
        self._spawn_stub(stack, STRIPE, "stripe_stub", port, *more)

    def _stripe_port(self) -> int:
        """The one of last time where it is free, so that a checkout page of then can still be paid; else any."""
        with contextlib.suppress(OSError, ValueError, OverflowError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, int((self._folder / "stripe-port").read_text())))
            return int(probe.getsockname()[1])
        return free_port()

    def _log_of(self, module: str) -> Path:
        return self._folder / f"{module}.log"

    def _await_stub(self, name: str, module: str) -> None:
        """Until it says on its log that it is ready; UpError shows the end of that log where it does not."""
        log = self._log_of(module)
        try:
            self._children.wait_until(name, lambda: f"{module} ready on ".encode() in log.read_bytes())
        except ChildError as error:
            tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            raise UpError("\n    ".join([f"{error}; the end of {log}:", *tail])) from None

    def _spawn_gateway(self, stack: contextlib.ExitStack, base_url: str, admin_url: str) -> None:
        ports = [str(urlsplit(url).port) for url in (base_url, admin_url)]
        arguments = ["--port", ports[0], "--admin-port", ports[1]]  # they win over a config.yaml that was changed
        if self._options.workers:
            arguments += ["--workers", str(self._options.workers)]
        pump = LogPump()
        stack.callback(pump.finish)
        stack.enter_context(
            self._children.running(
                "gateway",
                *("-m", "gateway", "serve", *arguments),
                stop_timeout_s=GATEWAY_STOP_TIMEOUT_S,
                stderr=pump.write_fd,
                started=pump.start,
            )
        )

    def _fill_in(self, stripe: Mapping[str, str]) -> None:
        """What the demo sets where nobody has; a variable that is set, even to nothing, stays."""
        defaults = {"COST_PER_CAST_CENTS": "1", "METRICS_PUBLIC": "true", **stripe}
        if sys.stderr.isatty():
            defaults["LOG_FORMAT"] = "console"
        for variable, value in defaults.items():
            self._environment.setdefault(variable, value)

    def _invite(self, base_url: str, admin_url: str, api_key: str, *, can_pay: bool) -> None:
        auth = f"-H 'Authorization: Bearer {api_key}'"
        typed = "-H 'Content-Type: application/json'"
        budget = json.dumps({"period": "daily", "hard_limit_cents": 3})
        paying = (
            ("pay", f"curl -X POST {base_url}/v1/billing/checkout {auth}"),
            ("", "its answer has a url: open it, press Pay, and the budgets are the plan pro's"),
            ("cancel", f"curl -X POST {base_url}/v1/billing/portal {auth}"),
        )
        for what, words in (
            ("", ""),
            ("cast", f"curl -i {base_url}/v1/cast {auth} {typed} -d '{json.dumps({'input': 'lumos'})}'"),
            ("usage", f"curl {base_url}/v1/usage {auth}"),
            ("budgets", f"curl {base_url}/v1/budgets {auth}"),
            ("set a budget", f"curl {base_url}/v1/budgets {auth} {typed} -d '{budget}'"),
            *(paying if can_pay else ()),
            ("metrics", f"curl {admin_url}/metrics"),
            ("console", f"{admin_url}/console"),
            ("stop", "Ctrl-C"),
            ("", ""),
        ):
            self._progress.say(f"  {what.ljust(14)} {words}".rstrip())


def _url(host: str, port: int) -> str:
    """Where a client on this machine finds what listens on ``host``."""
    if host in ANY_ADDRESS:
        host = HOST
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _all_workers_are_ready(admin_url: str, token: str) -> bool:
    parts = urlsplit(admin_url)
    connection = http.client.HTTPConnection(parts.hostname or HOST, parts.port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz", headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        workers = json.loads(answer.read())["workers"]
        return answer.status == http.client.OK and bool(workers["ready"] == workers["wanted"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return False
    finally:
        connection.close()


def _write_privately(path: Path, text: str) -> None:
    """The whole text or nothing, for this user's eyes only."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600)
    unfinished.write_text(text)
    unfinished.replace(path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--port", type=click.IntRange(0, 65535), envvar="PORT", default=8080, show_default=True, help="Clients.")
@click.option(
    "--admin-port",
    type=click.IntRange(0, 65535),
    envvar="ADMIN_PORT",
    default=9090,
    show_default=True,
    help="/metrics, /healthz, /readyz.",
)
@click.option("--workers", type=click.IntRange(1, 256), default=None, help="Worker processes. [default: as configured]")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".castgate"),
    show_default=True,
    help="The folder for all data, and for demo.json.",
)
@click.option("--ephemeral", is_flag=True, help="Begin with empty stores, and keep nothing of them.")
def main(port: int, admin_port: int, workers: int | None, data_dir: Path, ephemeral: bool) -> None:
    """Castgate with all it needs: embedded Postgres and Redis, stand-ins for Phase 1 and Stripe, a demo account.

    DATABASE_URL, REDIS_URL, UPSTREAM_URL and STRIPE_API_BASE name ones to use instead; with a STRIPE_SECRET_KEY
    payments go to the real Stripe. Port 0 takes any free one.
    """
    options = Options(port=port, admin_port=admin_port, workers=workers or 0, data_dir=data_dir, ephemeral=ephemeral)
    sys.exit(_Up(options).run())


if __name__ == "__main__":
    main(prog_name="./dev up")
