"""What commands about an output share: the argument that names it, and how much there is, as people read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.console import CallError, plain_table, reading_the_call
from pipeline.cli.summary import counted

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.settings import StorageSettings
    from pipeline.storage.objects import ObjectStore

Out = Annotated[
    str, typer.Argument(metavar="OUT", help="The --out of the labels, a folder or s3://.", show_default=False)
]


def existing_output(out: str, storage: StorageSettings) -> ObjectStore:
    """The store of an output that is there.

    Raises: CallError if it is a folder that does not exist, or no address of a store.
    """
    from pathlib import Path

    from pipeline.storage.objects import ObjectStore

    if not out.strip():
        raise CallError("an output", "an empty word", "check the variable that it comes from")
    with reading_the_call():
        store = ObjectStore(out, storage)
    root = store.path("commits")
    if root is not None and not Path(root).parent.is_dir():
        raise CallError(f"an output at {store.url}", "no folder", "give the --out of the label run")
    return store


def size(size_bytes: int) -> str:
    """Bytes as people read them: 1234567 -> "1.2 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return counted(size_bytes, "byte")


def sums_table(kinds: str, found: Iterable[tuple[str, int]]) -> Table:
    """How many objects and bytes there are of each kind.

    Args:
        kinds: heading of the first column.
        found: kind and size in bytes of each object.
    """
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kind, size_bytes in found:
        sums[kind][0] += 1
        sums[kind][1] += size_bytes
    table = plain_table()
    table.add_column(kinds)
    table.add_column("objects", justify="right")
    table.add_column("size", justify="right")
    for kind, (number, total) in sorted(sums.items()):
        table.add_row(kind, f"{number:,}", size(total))
    return table
