"""The configuration that the supervisor has accepted, as its workers read it.

Workers do not read the files themselves: one that starts again while a rejected edit lies on disk would not start, and
one that reads in the middle of an edit would serve other rules than its siblings. The folder is the supervisor's own
(mode 0700), which is what makes reading a pickle from it safe.

What it holds are values without the models that read them (``Loaded.as_values``).

A reload has two steps: the new configuration is *offered*, which every worker reads and makes ready without using it;
then it is *accepted*, and all of them take it at once. What one of them cannot read is withdrawn, and nobody has it.
"""

import pickle
from contextlib import suppress
from pathlib import Path

from gateway import __version__
from gateway.config.loaded import Loaded

_NAME = "configuration"
_OFFERED = "configuration.offered"


def keep(folder: Path, loaded: Loaded) -> None:
    """Puts ``loaded`` where ``read`` finds it, whole or not at all. Raises OSError."""
    offer(folder, loaded)
    accept(folder)


def offer(folder: Path, loaded: Loaded) -> None:
    """Puts ``loaded`` where ``read_offered`` finds it. Raises OSError."""
    new = folder / f"{_NAME}.new"
    new.write_bytes(pickle.dumps((__version__, loaded.as_values())))
    new.rename(folder / _OFFERED)


def accept(folder: Path) -> None:
    """What was offered is from now on what ``read`` finds. Raises OSError."""
    (folder / _OFFERED).rename(folder / _NAME)


def withdraw(folder: Path) -> None:
    """What was offered is not to be had any more."""
    with suppress(OSError):
        (folder / _OFFERED).unlink(missing_ok=True)


def read(folder: Path) -> Loaded | None:
    """What was kept last; None where it was kept by another version of the program, or never."""
    return _read(folder / _NAME)


def read_offered(folder: Path) -> Loaded | None:
    """What is offered; None where nothing is, or another version of the program offers it."""
    return _read(folder / _OFFERED)


def _read(path: Path) -> Loaded | None:
    try:
        version, loaded = pickle.loads(path.read_bytes())  # noqa: S301  our own folder, see above
    except (OSError, AttributeError, ImportError, pickle.UnpicklingError, TypeError, ValueError):
        return None
    return loaded if version == __version__ and isinstance(loaded, Loaded) else None
