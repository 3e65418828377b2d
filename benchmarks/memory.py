"""Anonymous memory of this process, and its peak while something runs: without the file pages that the kernel keeps."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def anonymous_mb() -> float:
    """Anonymous memory of this process, in MB."""
    found = re.search(r"^RssAnon:\s+(\d+)", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) / 1024


@dataclass
class Memory:
    """Anonymous memory in MB: `before` the block, and the `peak` until its end."""

    before: float
    peak: float


@contextmanager
def watched_memory() -> Iterator[Memory]:
    """Watches the memory of a block, fifty times a second."""
    memory, stop = Memory(anonymous_mb(), 0.0), threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            memory.peak = max(memory.peak, anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield memory
    finally:
        stop.set()
        watcher.join()
        memory.peak = max(memory.peak, anonymous_mb())
