"""``castgate`` with toy workers: the real command and supervisor, in a process of their own."""

import functools

from gateway import cli
from gateway.supervisor import Supervisor

if __name__ == "__main__":
    cli.Supervisor = functools.partial(Supervisor, worker_module="tests.process.toy_worker")  # type: ignore[assignment,misc]
    cli.main(prog_name="castgate")
