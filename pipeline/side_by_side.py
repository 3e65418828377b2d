"""Works on many things in threads, a few at a time, and gives each result as it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def side_by_side(do: Callable[[T], U], items: Iterable[T], threads: int, name: str) -> Iterator[U]:
    """What `do` makes of each item, in the order in which they are done.

    Items are taken as room comes, so there may be any number. A caller that stops early waits for those that have
    begun: each is whole.

    Args:
        do: called in a thread; what it raises ends the whole.
        threads: so many at a time, at least 1.
        name: of the threads, for people who look at a process.
    """
    waiting, running = iter(items), set[Future[U]]()
    pool = ThreadPoolExecutor(threads, thread_name_prefix=f"masksieve-{name}")
    try:
        while True:
            running |= {pool.submit(do, item) for item in islice(waiting, 2 * threads - len(running))}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(cancel_futures=True)
