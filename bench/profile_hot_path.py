"""Where a worker's time goes: ``python -m bench.profile_hot_path`` puts it under load and prints its hottest functions.

How it looks inside, and what that distorts, is told in ``bench/profile_hook/sitecustomize.py``. ``--stacks FILE``
writes folded stacks, which every flame graph tool reads; ``--documents`` the table of stages of docs/performance.md.
"""

import contextlib
import io
import os
import pstats
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import click

from bench.documents import filled
from bench.generators import generator_named
from bench.processes import BenchError, pinned, process_tree, split_cores, user_and_system_s
from bench.report import as_markdown, as_text
from bench.stages import stage_table
from bench.surroundings import started, surroundings
from bench.targets import CASTGATE, REPOSITORY, ROWS, Command, Place, Row, Target
from gateway import compiled

HOOK = Path(__file__).parent / "profile_hook"
WARM_UP_S = 1.0
WRITE_TIMEOUT_S = 10.0
POLL_S = 0.05
_ROWS = {row.name: row for row in ROWS if row.target is CASTGATE}


def _profiled(kind: str, folder: Path) -> Target:
    def command(place: Place) -> Command:
        plain = CASTGATE.command(place)
        path = os.pathsep.join([str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])])
        hook = {"PYTHONPATH": path, "CASTGATE_PROFILE_FOLDER": str(folder), "CASTGATE_PROFILE_KIND": kind}
        hook[compiled.SWITCH] = "0"  # what is compiled has no frames to be seen in
        return Command(words=plain.words, environment={**plain.environment, **hook})

    return replace(CASTGATE, command=command)


def _workers(pid: int) -> list[int]:
    found = []
    for member in process_tree(pid):
        with contextlib.suppress(OSError):
            if b"gateway.worker_main" in Path(f"/proc/{member}/cmdline").read_bytes().split(b"\0"):
                found.append(member)
    return found


def _toggle(workers: list[int]) -> None:
    for worker in workers:
        os.kill(worker, signal.SIGUSR2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The generator's figures in a line, what the profiler wrote (folded stacks, or pstats' text), µs of a call."""

    line: str
    text: str
    user_us: float
    system_us: float


def _profile(row: Row, kind: str, seconds: float, connections: int, generator_name: str, accounts: int) -> Profile:
    cores = split_cores()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="castgate-profile-")))
        found = folder / "found"
        found.mkdir()
        stack.enter_context(pinned(cores.rest))
        generator = generator_named(generator_name, folder=folder, cores=cores.rest)
        around = stack.enter_context(
            surroundings(folder, cores, stores=True, say=_say, many_accounts=accounts if row.many_accounts else 0)
        )
        child = stack.enter_context(started(_profiled(kind, found), around))
        url, called = f"http://127.0.0.1:{child.port}", 0
        while not called or called < around.many_accounts:
            _say(f"warming up: {called:,} calls")
            called += generator(url, row.request(around, first_key=called), connections, WARM_UP_S).requests
        workers = _workers(child.process.pid)
        if not workers:
            raise BenchError(f"there is no worker process below {child.name}")
        _say(f"profiling for {seconds:g} s")
        _toggle(workers)
        before = user_and_system_s(workers[0])
        sample = generator(url, row.request(around, first_key=called), connections, seconds)
        after = user_and_system_s(workers[0])
        _toggle(workers)
        child.check()
        profile = found / f"{workers[0]}.profile"
        deadline = time.monotonic() + WRITE_TIMEOUT_S
        while not profile.exists():
            if time.monotonic() > deadline:
                raise BenchError("the worker wrote no profile: was it started without this environment?")
            time.sleep(POLL_S)
        line = f"{row.title}, profiled: {sample.requests_per_s:,.0f} requests/s, {sample.requests} in all"
        if kind == "calls":
            stream = io.StringIO()
            pstats.Stats(str(profile), stream=stream).sort_stats("tottime").print_stats(60)
            text = stream.getvalue()
        else:
            text = profile.read_text()
        user_us, system_us = (
            (later - earlier) / max(1, sample.requests) * 1e6 for earlier, later in zip(before, after, strict=True)
        )
        return Profile(line=line, text=text, user_us=user_us, system_us=system_us)


def _short(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(REPOSITORY) and ".venv" not in path.parts:
        return str(path.relative_to(REPOSITORY))
    return "/".join(path.parts[-2:])


def hottest(folded: str, top: int) -> str:
    """Tables of the functions and of the lines in which most samples fell."""
    own: Counter[str] = Counter()
    below: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    total = 0
    for entry in folded.splitlines():
        stack_text, _, count_text = entry.rpartition(" ")
        count = int(count_text)
        total += count
        frames = [frame.split("\t") for frame in stack_text.split(";")]
        names = [f"{name} ({_short(file)})" for file, name, _ in frames]
        own[names[-1]] += count
        below.update(dict.fromkeys(names, count))
        lines[f"{_short(frames[-1][0])}:{frames[-1][2]} {frames[-1][1]}"] += count
    if not total:
        return "no samples: the worker used no CPU time"
    out = [f"{total} samples", "", "  own %  with callees %  function"]
    out += [f"{count / total:7.1%}  {below[name] / total:14.1%}  {name}" for name, count in own.most_common(top)]
    out += ["", "  own %  line"]
    out += [f"{count / total:7.1%}  {name}" for name, count in lines.most_common(top)]
    return "\n".join(out)


def folded_stacks(folded: str) -> str:
    """Folded stacks as flame graph tools want them: ``function;function count``."""
    merged: Counter[str] = Counter()
    for entry in folded.splitlines():
        stack_text, _, count = entry.rpartition(" ")
        frames = [frame.split("\t") for frame in stack_text.split(";")]
        merged[";".join(f"{_short(file)}:{name}" for file, name, _ in frames)] += int(count)
    return "".join(f"{stack} {count}\n" for stack, count in sorted(merged.items()))


def _say(text: str) -> None:
    click.echo(f"{text} …", err=True)


def _stop(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


@click.command()
@click.option("--row", "row_name", default="castgate", show_default=True, type=click.Choice(sorted(_ROWS)))
@click.option("--accounts", default=1, show_default=True, type=click.IntRange(1, 1_000_000), help="That call in turn.")
@click.option("--kind", default="sample", show_default=True, type=click.Choice(["sample", "calls"]))
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(1, 600))
@click.option("--connections", default=64, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--generator", default="auto", show_default=True, type=click.Choice(["auto", "wrk", "python"]))
@click.option("--top", default=30, show_default=True, type=click.IntRange(1, 1000))
@click.option(
    "--stacks", type=click.Path(dir_okay=False, path_type=Path), help="Write folded stacks here (sample only)."
)
@click.option("--documents", is_flag=True, help="Write the table of stages in docs/performance.md anew (sample only).")
def main(
    row_name: str,
    accounts: int,
    kind: str,
    seconds: float,
    connections: int,
    generator: str,
    top: int,
    stacks: Path | None,
    documents: bool,
) -> None:
    """Print where a worker's CPU time goes under load."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        row = replace(_ROWS[row_name], many_accounts=accounts > 1)
        found = _profile(row, kind, seconds, connections, generator, accounts)
    except BenchError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        sys.exit(130)
    click.echo(found.line)
    if kind == "calls":
        click.echo(found.text)
        return
    click.echo(hottest(found.text, top))
    if not found.text:
        return
    stages = stage_table(found.text, found.user_us, found.system_us)
    click.echo("\n" + as_text(stages))
    if stacks is not None:
        stacks.write_text(folded_stacks(found.text))
    if documents:
        path = REPOSITORY / "docs" / "performance.md"
        path.write_text(filled(path.read_text(), {f"profile-{row_name}": as_markdown(stages)}))


if __name__ == "__main__":
    main()
