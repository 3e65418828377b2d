"""A fresh interpreter that runs one module's `main`: it can hang, crash or eat memory without harm to its starter.

No fork (torch may be loaded) and no multiprocessing (it imports the caller's script). The kernel ends the process when
the thread that started it ends (PR_SET_PDEATHSIG), even a stopped one. Its stderr is a file, which holds libav's log.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection

PR_SET_PDEATHSIG = 1
CHILD_CODE = "import sys; sys.path[:] = {path!r}; from {module} import main; main({arguments})"
STDERR_TAIL_BYTES = 2000


class ChildProcess:
    """Start `module.main(link_fd, parent_pid, memory_bytes, *fds)`; `link` is the other end of its first argument.

    Args:
        module: dotted name; its `main` calls `enter_child` first.
        memory_bytes: of address space that it may take, 0 for any.
        fds: descriptors that it inherits.
    """

    def __init__(self, module: str, memory_bytes: int, fds: Sequence[int] = ()) -> None:
        ours, theirs = socket.socketpair()
        self.link = Connection(ours.detach())
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        arguments = ", ".join(str(number) for number in (theirs.fileno(), os.getpid(), memory_bytes, *fds))
        code = CHILD_CODE.format(path=sys.path, module=module, arguments=arguments)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=(theirs.fileno(), *fds),
            )
        except BaseException:
            self.link.close()
            self._stderr.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid

    def wake(self) -> None:
        """Continue it if it has stopped itself."""
        self._process.send_signal(signal.SIGCONT)

    def describe_death(self) -> str:
        """How it ended, after its link has closed: signal or exit code, and the last line of its stderr."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        size = os.fstat(self._stderr.fileno()).st_size
        tail = os.pread(self._stderr.fileno(), STDERR_TAIL_BYTES, max(0, size - STDERR_TAIL_BYTES))
        lines = tail.decode(errors="replace").strip().splitlines()
        return f"{how}{': ' + lines[-1][:200] if lines else ''}"

    def close(self) -> None:
        """Kill it and free what it held."""
        self._process.kill()
        self._process.wait()
        self.link.close()
        self._stderr.close()


def enter_child(link_fd: int, parent_pid: int, memory_bytes: int) -> Connection:
    """What the child does first: end with its parent, leave Ctrl-C to it, keep to its memory. Returns the link."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if memory_bytes:
            import resource

            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    if os.getppid() != parent_pid:
        sys.exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Connection(link_fd)
