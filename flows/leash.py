"""Runs a command that the kernel ends when its parent dies, however the parent dies.

`python -m flows.leash PARENT_PID COMMAND...`: an exec, so the process is the command itself. A step between fork and
exec would do the same, but is not safe in a parent with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Become the command; never returns.

    Args: argv: PID of the parent, then the command and its arguments.
    """
    parent, *command = argv
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the kernel was told
        sys.exit(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where `up` was started in the background
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
