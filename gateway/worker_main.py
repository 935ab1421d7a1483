"""The program that a worker is: started by the supervisor, and by nobody else."""

import json
import os
import sys

from gateway import compiled


def main() -> None:
    """Runs one worker."""
    text = os.environ.get("CASTGATE_WORKER")
    if text is None:
        sys.exit("gateway.worker_main is started by castgate serve")
    interpreted = compiled.use()
    # Not before: what is imported is compiled or not.
    from gateway.worker_parameters import Parameters  # noqa: PLC0415
    from gateway.worker_serve import run  # noqa: PLC0415

    run(Parameters(**json.loads(text)), interpreted)


if __name__ == "__main__":
    main()
