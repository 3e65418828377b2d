"""A server's garbage is never collected by the thread of its event loop."""

from __future__ import annotations

import subprocess
import sys

CYCLES = """
import threading, time
from flows.server import collect_beside

collectors = set()

class Node:
    def __init__(self):
        self.me = self
    def __del__(self):
        collectors.add(threading.current_thread().name)

collect_beside()
end = time.monotonic() + 20
while not collectors and time.monotonic() < end:
    kept = [Node() for _ in range(1000)]
    del kept
    time.sleep(0.01)
print(sorted(collectors))
"""


def test_garbage_is_collected_beside_the_main_thread() -> None:
    done = subprocess.run([sys.executable, "-c", CYCLES], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "['garbage']"
