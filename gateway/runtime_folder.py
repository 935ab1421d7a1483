"""The folder in which the processes of one gateway meet: made at its start, private, gone at its end."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gateway.metrics_file import is_abandoned

_PREFIX = "castgate-run-"
# A folder whose processes are all dead is left over from a SIGKILL, unless it is just being made.
LEFT_OVER_AFTER_S = 60.0


@contextlib.contextmanager
def runtime_folder() -> Iterator[Path]:
    """A folder under the system's one for temporary files, mode 0700. Takes away what killed gateways left there."""
    _remove_left_over()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left_over() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            about = folder.lstat()
            is_ours = folder.is_dir() and not folder.is_symlink() and about.st_uid == os.geteuid()
            if is_ours and time.time() - about.st_mtime > LEFT_OVER_AFTER_S and is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
