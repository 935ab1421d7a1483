"""The configuration that the supervisor has accepted, as its workers read it.

Workers do not read the files themselves: one that starts again while a rejected edit lies on disk would not start, and
one that reads in the middle of an edit would serve other rules than its siblings. The folder is the supervisor's own
(mode 0700), which is what makes reading a pickle from it safe.
"""

import pickle
from pathlib import Path

from gateway import __version__
from gateway.config import Loaded

_NAME = "configuration"


def keep(folder: Path, loaded: Loaded) -> None:
    """Puts ``loaded`` where ``read`` finds it, whole or not at all. Raises OSError."""
    new = folder / f"{_NAME}.new"
    new.write_bytes(pickle.dumps((__version__, loaded)))
    new.rename(folder / _NAME)


def read(folder: Path) -> Loaded | None:
    """What was kept last; None where it was kept by another version of the program, or never."""
    try:
        version, loaded = pickle.loads((folder / _NAME).read_bytes())  # noqa: S301  our own folder, see above
    except (OSError, AttributeError, ImportError, pickle.UnpicklingError, TypeError, ValueError):
        return None
    return loaded if version == __version__ and isinstance(loaded, Loaded) else None
