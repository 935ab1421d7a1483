"""``./dev chaos``: faults of all kinds under load, and whether anything came of them that must not.

    ./dev chaos                          the short form, as in the suite
    ./dev chaos --minutes 30 --injections 500
    ./dev chaos --seed 7 --only 'redis killed' --injections 20

What is drawn depends on the seed alone; when things happen depends on the machine.
"""

import faulthandler
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import click
import uvloop

from tests.chaos import report
from tests.chaos.run import Outcome, Plan, Run
from tests.chaos.world import SHIPPED, Patience, World


async def run(plan: Plan, folder: Path, *, gateways: int, workers: int, clients: int, patience: Patience) -> Outcome:
    async with World(
        folder, gateways=gateways, workers=workers, clients=clients, seed=plan.seed, patience=patience
    ) as world:
        return await Run(world, plan, lambda line: click.echo(line)).run()


@click.command(help=__doc__.partition("\n")[0] if __doc__ else None)
@click.option("--seed", type=int, default=None, help="By default the time.")
@click.option("--injections", default=12, show_default=True, type=click.IntRange(1), help="At least so many faults.")
@click.option("--minutes", default=0.0, type=click.FloatRange(0), help="And for at least as long.")
@click.option("--per-episode", default=12, show_default=True, type=click.IntRange(1), help="Faults between two checks.")
@click.option("--double-every", default=0, type=click.IntRange(0), help="Each so many-th episode has faults in pairs.")
@click.option("--only", multiple=True, metavar="WORDS", help="Only faults with this in their names; repeatable.")
@click.option("--gateways", default=2, show_default=True, type=click.IntRange(1, 8))
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 8), help="Of each gateway.")
@click.option("--clients", default=24, show_default=True, type=click.IntRange(1, 500))
@click.option("--shipped-times", is_flag=True, help="Time-outs for stores as shipped; for machines with time to spare.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where logs and the record of casts stay.")
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Write the outcome to this file.")
def main(
    seed: int | None,
    injections: int,
    minutes: float,
    per_episode: int,
    double_every: int,
    only: tuple[str, ...],
    gateways: int,
    workers: int,
    clients: int,
    folder: Path | None,
    shipped_times: bool,
    as_json: Path | None,
) -> None:
    plan = Plan(
        seed=int(time.time()) if seed is None else seed,
        injections=injections,
        seconds=minutes * 60,
        per_episode=per_episode,
        double_every=double_every,
        only=only,
    )
    click.echo(f"seed {plan.seed}")
    faulthandler.enable()
    # As a Ctrl-C: small disks are mounted, which would stay.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with tempfile.TemporaryDirectory(prefix="castgate-chaos-") as made:
        outcome = uvloop.run(
            run(
                plan,
                folder or Path(made),
                gateways=gateways,
                workers=workers,
                clients=clients,
                patience=SHIPPED if shipped_times else Patience(),
            )
        )
    for line in report.lines(outcome, plan):
        click.echo(line)
    if as_json is not None:
        as_json.write_text(json.dumps(report.as_json(outcome, plan), indent=2))
    sys.exit(1 if outcome.faults else 0)


if __name__ == "__main__":
    main()
