"""Runs a program that does not outlive the process that started it.

``python -I -S tether.py '{"parent": 123, "signal": 15, …}' PROGRAM ARGUMENTS…`` becomes PROGRAM, with the same pid.
On Linux the kernel sends it the signal when the *thread* that started it ends (prctl(2), PR_SET_PDEATHSIG), so start it
from one that lives as long as its process. Elsewhere nothing ties the two; the next start takes over what is left.

Where ``user`` is given and we are root, PROGRAM runs as that user: Postgres refuses to run as root. If the user may not
reach one of ``paths`` (a checkout below /root, say), PROGRAM keeps one capability of root's, CAP_DAC_OVERRIDE: less
than root has, and no permission of any folder is changed.

A script of its own, on the standard library alone, because these calls belong between fork and exec, where a
process with threads must not run Python code, and because it starts in 20 ms.
"""

import contextlib
import ctypes
import json
import os
import pwd
import signal
import sys

# linux/prctl.h and linux/capability.h
PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAP_DAC_OVERRIDE = 1
CAP_SETPCAP = 8
CAPABILITY_VERSION_3 = 0x20080522


def command(
    program: list[str], *, dies_by: signal.Signals, user: str = "", paths: list[str] | None = None
) -> list[str]:
    """The command line that runs ``program`` tied to this process, which ends it with ``dies_by``."""
    told = {"parent": os.getpid(), "signal": int(dies_by), "user": user, "paths": paths or []}
    return [sys.executable, "-I", "-S", __file__, json.dumps(told), *program]


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, *padded) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _set_capabilities(held: int, inheritable: int) -> None:
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(held, held, inheritable, 0, 0, 0)  # effective, permitted, inheritable; the high words
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _keep_dac_override() -> None:
    """Hands CAP_DAC_OVERRIDE on through exec, where PR_SET_KEEPCAPS has saved it over the change of user."""
    kept = 1 << CAP_DAC_OVERRIDE
    with contextlib.suppress(OSError):  # enough where only the data are out of reach, and not the programs
        _set_capabilities(kept | 1 << CAP_SETPCAP, kept)
        # Else access(2), by which initdb looks for its programs, leaves out what a user other than root is capable of.
        _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    _set_capabilities(kept, kept)
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE)


def _become(user: str, paths: list[str]) -> None:
    entry = pwd.getpwnam(user)
    if sys.platform == "linux":
        _prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    unreachable = [path for path in paths if not os.access(path, os.R_OK | os.X_OK)]
    if unreachable:
        if sys.platform != "linux":
            raise PermissionError(f"user {user} may not reach {unreachable[0]}")
        _keep_dac_override()


def main() -> None:
    told = json.loads(sys.argv[1])
    if told["user"] and os.geteuid() == 0:
        _become(told["user"], told["paths"])
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, told["signal"])  # last: a change of user clears it
        if os.getppid() != told["parent"]:
            sys.exit("the process that asked for this one is gone")
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error}")
