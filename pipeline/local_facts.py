"""A layer of a commit as a local file, checked against the checksum that the commit has of it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.checksum import file_sha256
from pipeline.errors import StorageError
from pipeline.ledger import Commit
from pipeline.storage.objects import ObjectStore

logger = logging.getLogger(__name__)


class DamagedFacts(StorageError):
    """Facts that are missing or are not the bytes that their commit names."""


@contextmanager
def local_facts(store: ObjectStore, commit: Commit, scratch_dir: Path | None, layer: str = "masks") -> Iterator[Path]:
    """A layer of a commit as a local file, checked against the commit's checksum. Raises DamagedFacts."""
    record, step = commit.file(layer), f"restore the file, or label {commit.video_uri} again"
    with ExitStack() as stack:
        path = store.path(record.key)
        if path is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="masksieve-facts-", dir=scratch_dir))
            path = Path(folder) / f"{layer}.parquet"
            if not store.exists(record.key):
                raise DamagedFacts(f"facts at {store.uri(record.key)}", "nothing there", step)
            digest = store.get_file(record.key, path)
        else:
            if not path.is_file():
                raise DamagedFacts(f"facts at {path}", "no file", step)
            digest = file_sha256(path)
        if digest != record.sha256:
            got = f"{digest[:12]} at {store.uri(record.key)}"
            raise DamagedFacts(f"facts with SHA-256 {record.sha256[:12]}", got, step)
        yield path


def whole_facts(store: ObjectStore, commit: Commit, scratch_dir: Path | None) -> bool:
    """Whether the masks of a commit are what it says. Raises StorageError if the store cannot tell."""
    try:
        with local_facts(store, commit, scratch_dir):
            return True
    except DamagedFacts as error:
        logger.warning("%s", error)
        return False
