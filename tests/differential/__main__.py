"""``./dev differential``: the corpus against Castgate, nginx, HAProxy and Envoy, and the table of where they differ.

Exit code 1 where Castgate does something else than the corpus expects, where its upstream was sent what is no HTTP, or
where a difference has no rule that explains it.
"""

import asyncio
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click

from tests.differential.corpus import Case, read_corpus, read_rules
from tests.differential.observing import Outcome, observe, observe_together
from tests.differential.proxies import INSTALL, PROXIES, Proxy
from tests.differential.recording import recording

DOCUMENT = Path(__file__).parents[2] / "docs" / "http.md"
BEGIN, END = "<!-- differential: begin (./dev differential --write) -->\n", "<!-- differential: end -->\n"

Outcomes = dict[str, Outcome]


async def outcomes_of(proxy: Proxy, cases: Sequence[Case]) -> tuple[Outcomes, list[str]]:
    """What a proxy makes of each case, by its name; and what its upstream could not read."""
    async with recording() as recorder:
        with tempfile.TemporaryDirectory(prefix="castgate-differential-") as folder:
            starting = proxy.running(Path(folder), recorder.port)
            port = await asyncio.to_thread(starting.__enter__)
            try:
                waiting = [case for case in cases if case.partial]
                found = dict(
                    zip([case.name for case in waiting], await observe_together(waiting, port, recorder), strict=True)
                )
                for case in cases:
                    if not case.partial:
                        found[case.name] = await observe(case, port, recorder)
            finally:
                await asyncio.to_thread(starting.__exit__, None, None, None)
        return found, recorder.broken


def differing(case: Case, outcomes: Mapping[str, Outcomes]) -> list[str]:
    """The peers that make something else of a case than Castgate. Which code a refusal has is not a difference."""
    ours = outcomes["castgate"][case.name].meaning
    return [name for name, found in outcomes.items() if found[case.name].meaning != ours]


def table(cases: Iterable[Case], outcomes: Mapping[str, Outcomes]) -> str:
    """The differences by the rule that explains them, in Markdown."""
    peers = [name for name in outcomes if name != "castgate"]
    rules = read_rules()
    by_rule: dict[str, list[Case]] = {}
    total = 0
    for case in cases:
        total += 1
        if differing(case, outcomes):
            by_rule.setdefault(case.why or "", []).append(case)
    differences = sum(map(len, by_rule.values()))
    lines = [
        f"{total} cases, of which {differences} are not the same for all. An entry is what the client got, then",
        "what the upstream understood; `=` is the same as Castgate.\n",
    ]
    for rule in [*rules, ""]:
        if rule not in by_rule:
            continue
        lines.append(f"\n### {rule or 'not explained'}\n\n{rules.get(rule, '').strip()}\n")
        lines.append("| case | castgate | " + " | ".join(peers) + " |\n| --- | --- |" + " --- |" * len(peers))
        for case in by_rule[rule]:
            found = [outcomes["castgate"][case.name]]
            cells = [_cell(found[0])]
            for peer in peers:
                outcome = outcomes[peer][case.name]
                cells.append("=" if outcome.meaning == found[0].meaning else _cell(outcome))
            lines.append(f"| {case.name.replace('|', chr(92) + '|')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(outcome: Outcome) -> str:
    return f"`{str(outcome).replace('|', '¦')}`"


def _problems(cases: Sequence[Case], outcomes: Mapping[str, Outcomes], broken: Mapping[str, list[str]]) -> list[str]:
    problems = [f"castgate's upstream could not read: {text}" for text in broken["castgate"]]
    for case in cases:
        found = str(outcomes["castgate"][case.name])
        if found != case.expect:
            problems.append(f"{case.name}: expected {case.expect!r}, found {found!r}")
        elif case.why is None and (peers := differing(case, outcomes)):
            said = ", ".join(f"{peer}: {outcomes[peer][case.name]}" for peer in peers)
            problems.append(f"{case.name}: {found!r}, and nothing says why others differ ({said})")
    return problems


async def _run(proxies: Sequence[Proxy], cases: Sequence[Case]) -> tuple[dict[str, Outcomes], dict[str, list[str]]]:
    results = await asyncio.gather(*[outcomes_of(proxy, cases) for proxy in proxies])
    outcomes = {proxy.name: found for proxy, (found, _) in zip(proxies, results, strict=True)}
    return outcomes, {proxy.name: broken for proxy, (_, broken) in zip(proxies, results, strict=True)}


@click.command()
@click.option("--write", is_flag=True, help=f"Write the table into docs/{DOCUMENT.name}; needs every peer.")
def main(*, write: bool) -> None:
    """Send the corpus of raw requests to Castgate and its peers, and show where they differ."""
    cases = read_corpus()
    there = [proxy for proxy in PROXIES if proxy.program is not None]
    missing = [proxy.name for proxy in PROXIES if proxy.program is None]
    for name in missing:
        click.echo(f"{name} is not here: {INSTALL[name]}", err=True)
    if write and missing:
        raise click.ClickException("the table needs every peer")
    outcomes, broken = asyncio.run(_run(there, cases))
    text = table(cases, outcomes)
    if write:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        DOCUMENT.write_text(before + BEGIN + text + END + after, encoding="utf-8")
    else:
        click.echo(text)
    for name, texts in broken.items():
        if name != "castgate":
            click.echo(f"{name}: its upstream was sent {len(texts)} messages that h11 does not read", err=True)
    problems = _problems(cases, outcomes, broken)
    for problem in problems:
        click.echo(problem, err=True)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
