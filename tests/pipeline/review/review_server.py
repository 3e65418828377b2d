"""A real `masksieve review serve` in a process of its own, on an output with as many items as a test asks for."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.review.answers import Answer, read_answers
from pipeline.review.queue import Queue
from pipeline.storage.objects import ObjectStore

from .conftest import Drop

TOKEN = "a-token-for-the-tests-of-the-page"


@dataclass(frozen=True)
class ReviewServer:
    """A server that runs. `truth`: ids of objects by the video's stem."""

    url: str
    out: Path
    database: Path
    truth: dict[str, NDArray[np.uint8]]
    token: str = TOKEN

    def answers(self) -> dict[str, Answer]:
        """All answers so far by id, as they come into the output; none of them can be taken back any more."""
        store = ObjectStore(str(self.out))
        queue = Queue(self.database, store.identity)
        queue.export(store, force=True)
        queue.close()
        found = list(read_answers(store))
        assert len({one.item_id for one in found}) == len(found), "an item has two answers"
        return {one.answer_id: one for one in found}


def multiply_items(out: Path, wanted: int) -> None:
    """Ask about the same stretches again and again, under other names, until so many items wait."""
    files = sorted(out.glob("review/*/*.parquet"))
    for path in files:
        table = pq.read_table(path)
        rows_of: dict[str, list[int]] = {}
        for row, name in enumerate(table.column("review_id").to_pylist()):
            rows_of.setdefault(name, []).append(row)
        stretches, rows, names = list(rows_of.values()), [], []
        for number in range(-(-wanted // len(files)) - len(stretches)):
            again = stretches[number % len(stretches)]
            rows += again
            names += [hashlib.sha256(f"{path.name}{number}".encode()).hexdigest()[:20]] * len(again)
        at = table.column_names.index("review_id")
        copies = table.take(rows).set_column(at, table.schema.field(at), pa.array(names))
        pq.write_table(pa.concat_tables([table, copies]).replace_schema_metadata(table.schema.metadata), path)


@contextmanager
def served(
    drop: Drop, folder: Path, *, items: int = 0, settings: dict[str, object] | None = None
) -> Iterator[ReviewServer]:
    """The drop behind a server of its own; it is asked to end afterwards, and has to end well."""
    out, database, token = folder / "out", folder / "queue.sqlite", folder / "token"
    shutil.copytree(drop.out, out)
    if items:
        multiply_items(out, items)
    token.write_text(TOKEN)
    token.chmod(0o600)
    sets = [part for name, value in (settings or {}).items() for part in ("--set", f"{name}={value}")]
    command = [
        sys.executable, "-m", "pipeline.cli", "review", "serve", str(out), "--port", "0", "--database", str(database),
        "--token-file", str(token), *sets,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = re.search(r"http://\S+/", line)
            assert url is not None, f"{line!r}\n{(folder / 'log').read_text()[-3000:]}"
            yield ReviewServer(url[0], out, database, drop.truth)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            finally:
                process.kill()
        assert process.returncode == 0, (folder / "log").read_text()[-3000:]
