"""A whole run: start everything, put every load on every row, audit the ledger, stop everything.

Rows of many accounts have stores of their own (``of_many_accounts``), and no row is measured until what others left to
be done is done (``bench.quiet``): a figure is to be the same whichever rows are measured beside it.
"""

import contextlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from bench.audit import Tally, accounts_not_charged, audit, audit_many
from bench.figures import FORMAT
from bench.generators import GRACE_S, Generator, generator_named
from bench.machine import machine, versions
from bench.processes import BenchError, Child, pinned, split_cores
from bench.quiet import Quiet, used_by_others_s
from bench.rounds import Load, Measured, measure, run_rounds, with_generator
from bench.scenarios import Preset, Scenario
from bench.streams import EVENT_INTERVAL_S, read_streams, stream_upstream
from bench.surroundings import Say, Surroundings, call, of_many_accounts, started, surroundings
from bench.targets import NGINX, ROWS, Row

# Calls of many accounts in a second on the slowest machine: a round of all of them takes no longer than this allows.
_CALLS_PER_S_MIN = 500


@dataclass(slots=True, kw_only=True)
class _Run:
    """What is needed all the way, and what is gathered."""

    around: Surroundings
    of_many: Mapping[str, Surroundings]  # by row, of those with many accounts
    generator: Generator
    quiet: Quiet
    say: Say
    children: dict[str, Child] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)  # of the one account
    tally_many: Tally = field(default_factory=Tally)
    first_keys: dict[str, int] = field(default_factory=dict)  # where many accounts go on, by row

    def around_of(self, row: Row) -> Surroundings:
        return self.of_many[row.name] if row.many_accounts else self.around

    def start(self, stack: contextlib.ExitStack, row: Row, around: Surroundings, suffix: str = "") -> None:
        name = row.target.name + suffix
        if name not in self.children:
            self.say(f"starting {name}")
            self.children[name] = stack.enter_context(started(row.target, around, name))

    def wait(self, row: Row, suffix: str = "") -> bool:
        """Whether the machine is quiet now but for the row's own server, or it was waited for in vain."""
        cores, pid = self.around.cores, self.children[row.target.name + suffix].process.pid
        return self.quiet.wait(
            lambda: used_by_others_s(cores, pid),
            lambda share: self.say(f"{row.title} waits for a quiet machine ({share:.0%} of a core is used)"),
        )

    def check_answers(self, rows: Sequence[Row], *, large: bool) -> None:
        """Every row must relay the service's answer before it is worth measuring."""
        for row in rows:
            around = self.around_of(row)
            request = row.request(around, large=large)
            key = around.api_key
            if request.keys_file is not None:
                key = request.keys_file.read_text().partition("\n")[0]
            child = self.children[row.target.name]
            status, text = call(child.port, key, request.method, request.path, json.loads(request.body))
            if status != 200 or '"status":"done"' not in text:
                raise BenchError(f"{row.title} answered {status}: {text[:500]}; {child.log_tail()}")
            if row.charged:
                self.tally_of(row).certain += 1

    def tally_of(self, row: Row) -> Tally:
        return self.tally_many if row.many_accounts else self.tally

    def measure(self, row: Row, child: Child, load: Load, seconds: float, *, large: bool = False) -> Measured:
        """One row once, and its calls in the tally; of many accounts, those that have waited longest."""
        around, first_key = self.around_of(row), self.first_keys.get(row.name, 0)
        request = row.request(around, large=large, first_key=first_key)
        measured = measure(request, child, around, load, seconds)
        # Of the last calls some may have got no answer; their accounts call again.
        self.first_keys[row.name] = first_key + max(0, measured.sample.requests - measured.sample.abandoned_max)
        if row.charged:
            self.tally_of(row).add(measured.sample)
        return measured

    def warm_up(self, rows: Sequence[Row], connections: int, seconds: float) -> None:
        """Each row once; those of many accounts until each of them has called."""
        for row in rows:
            self.say(f"warming up: {row.title}")
            load = with_generator(self.generator, connections, seconds)
            if not (row.many_accounts and row.target.stores):
                self.measure(row, self.children[row.target.name], load, seconds)
                continue
            self.call_of_each(row, connections, seconds)
            # A call that waited when its generator hung up may have been one that no later run has made again.
            while row.charged and (missing := accounts_not_charged(self.around_of(row))):
                self.say(f"warming up: {row.title}: {missing:,} have no call in the ledger")
                self.call_of_each(row, connections, seconds)

    def call_of_each(self, row: Row, connections: int, seconds: float) -> None:
        """Each of many accounts calls, in runs of so many seconds. Raises BenchError where that takes for ever."""
        load = with_generator(self.generator, connections, seconds)
        many = self.around_of(row).many_accounts
        begin, called = self.first_keys.get(row.name, 0), 0
        deadline = time.monotonic() + GRACE_S + many / _CALLS_PER_S_MIN
        while called < many:
            if time.monotonic() > deadline:
                raise BenchError(f"{row.title}: only {called:,} of {many:,} have called")
            self.measure(row, self.children[row.target.name], load, seconds)
            called = self.first_keys[row.name] - begin
            self.say(f"warming up: {row.title}: {min(called, many):,} of {many:,} have called")

    def scenario(self, scenario: Scenario, warm_up_s: float) -> dict[str, list[Measured]]:
        """All rounds of one load."""
        if scenario.streams:
            return self._streams(scenario)
        with contextlib.ExitStack() as stack:
            own = [row for row in scenario.rows if row.target.name not in self.children]
            for row in own:
                self.start(stack, row, self.around_of(row))
            self.check_answers(own or scenario.rows, large=scenario.large)
            self.warm_up(own, scenario.connections, warm_up_s)

            def measure_row(row: Row) -> Measured:
                if row.many_accounts and row.target.stores:
                    # While others were measured, what is remembered of accounts grew too old to serve: an account is
                    # active when it calls every few seconds, as it would with this load alone.
                    self.call_of_each(row, scenario.connections, warm_up_s)
                load = with_generator(self.generator, scenario.connections, scenario.seconds)
                child = self.children[row.target.name]
                return self.measure(row, child, load, scenario.seconds, large=scenario.large)

            found = run_rounds(scenario.rows, scenario.rounds, self.wait, measure_row, self.say, scenario.title)
            for row in own:
                del self.children[row.target.name]
            return found

    def _streams(self, scenario: Scenario) -> dict[str, list[Measured]]:
        """Servers in front of another service, which sends events."""
        cores = self.around.cores.rest
        events = max(1, round(scenario.seconds / EVENT_INTERVAL_S))
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(stream_upstream(self.around.folder, cores, events))
            # A stream keeps its connection to the service.
            around = replace(self.around, upstream_url=url, upstream_connections_max=2 * scenario.connections)
            for row in scenario.rows:
                self.start(stack, row, around, "-streams")

            def wait(row: Row) -> bool:
                return self.wait(row, "-streams")

            def measure_row(row: Row) -> Measured:
                child = self.children[f"{row.target.name}-streams"]
                request = row.request(self.around)

                def load(_base_url: str, _request: object) -> object:
                    return read_streams(child.port, request, cores, scenario.connections, events)

                measured = measure(request, child, self.around, load, scenario.seconds)  # type: ignore[arg-type]
                if row.charged:
                    self.tally.certain += scenario.connections
                return measured

            return run_rounds(scenario.rows, scenario.rounds, wait, measure_row, self.say, scenario.title)

    def audits(self) -> list[str]:
        """What the ledger says of the calls of charged rows."""
        found = []
        charged = [row for row in ROWS if row.charged and row.target.name in self.children]
        for row in charged:
            self.say(f"auditing the ledger: {row.title}")
            if row.many_accounts:
                found.append(audit_many(self.around_of(row), self.tally_many))
            else:
                port = self.children[row.target.name].port
                found.append(audit(self.around, port, row.request(self.around), self.tally))
        return found


def run(preset: Preset, generator_name: str, skipped: Sequence[str], say: Say) -> dict[str, object]:
    """Measure, audit, stop everything; the figures. Raises BenchError."""
    cores = split_cores()
    rows = {row.name: row for scenario in preset.scenarios for row in scenario.rows}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="castgate-bench-")))
        stack.enter_context(pinned(cores.rest))
        generator = generator_named(generator_name, folder=folder, cores=cores.rest)
        around = stack.enter_context(
            surroundings(
                folder,
                cores,
                stores=any(row.target.stores and not row.many_accounts for row in rows.values()),
                say=say,
            )
        )
        of_many = {
            row.name: stack.enter_context(of_many_accounts(around, row.target, preset.many_accounts, say))
            for row in rows.values()
            if row.many_accounts
        }
        state = _Run(around=around, of_many=of_many, generator=generator, quiet=Quiet(preset.wait_s_max), say=say)
        lasting = [row for row in ROWS if row.name in rows]
        for row in lasting:
            state.start(stack, row, state.around_of(row))
        state.check_answers(lasting, large=False)
        state.warm_up(lasting, preset.scenarios[0].connections, preset.warm_up_s)
        found = [(scenario, state.scenario(scenario, preset.warm_up_s)) for scenario in preset.scenarios]
        audits = state.audits()
        say("stopping")
    say("")
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "cores": {"proxy": cores.proxy, "rest": list(cores.rest)},
        "preset": preset.name,
        "generator": next(
            (one.sample.generator for _, rounds in found for many in rounds.values() for one in many), ""
        ),
        "upstream": "nginx" if NGINX.met else "python",
        "many_accounts": preset.many_accounts if of_many else 0,
        "audits": audits,
        "skipped": list(skipped),
        "rows": {
            row.name: row.title.replace("many accounts", f"{preset.many_accounts:,} accounts") for row in rows.values()
        },
        "scenarios": [
            {
                "name": scenario.name,
                "title": scenario.title,
                "connections": scenario.connections,
                "rounds": scenario.rounds,
                "seconds": scenario.seconds,
                "rows": {name: [one.as_json() for one in rounds] for name, rounds in measured.items()},
            }
            for scenario, measured in found
        ],
    }
