"""Runs a Prefect server whose garbage is collected beside its event loop; else SQLite may stop it for a minute.

A cursor that became garbage is finalised by the thread that collects it, and SQLite makes that thread wait for the
cursor's connection. If the connection waits for its turn to write, and the one that writes waits for the event loop, a
collection on the event loop's own thread stops the server until SQLite gives up, after 60 s.

`python -m flows.server start --host ...` takes the words of `prefect server`.
"""

from __future__ import annotations

import gc
import sys
import threading
import time

YOUNG_SECONDS = 1.0
FULL_EVERY = 30
"""So many collections of what is young, then one of everything."""


def collect_beside() -> None:
    """Take garbage collection off all other threads; the collecting thread ends with the process."""
    gc.disable()

    def collect() -> None:
        turn = 0
        while True:
            time.sleep(YOUNG_SECONDS)
            turn += 1
            gc.collect(2 if turn % FULL_EVERY == 0 else 1)

    threading.Thread(target=collect, name="garbage", daemon=True).start()


def main() -> None:
    """Become the Prefect server."""
    from prefect.cli import app

    collect_beside()
    sys.argv[1:1] = ["server"]
    app()


if __name__ == "__main__":
    main()
