"""What tests of garbage share: ages, and a sweep as they call it."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.gc import Sweep
from pipeline.ledger import Ledger
from pipeline.records import file_metadata
from pipeline.settings import DropSettings
from pipeline.storage.objects import ObjectStore

VIDEO = "cd" * 32
LIMIT_SECONDS = 3600.0
OLD_SECONDS, YOUNG_SECONDS = 2 * LIMIT_SECONDS, LIMIT_SECONDS / 2
EVERYTHING = -5.0
"""As `older_than_seconds`: whatever there is counts as old, also by a clock of whole seconds."""


def sweep(
    store: ObjectStore, ledger: Ledger | None = None, older_than_seconds: float = EVERYTHING, **more: Any
) -> Sweep:
    ledger = ledger or Ledger(store, "/nonexistent/commits.sqlite")
    return Sweep(store, ledger, DropSettings(lease_seconds=30), older_than_seconds=older_than_seconds, **more)


def collect(sweep: Sweep) -> list[str]:
    """Look, remove, and give the keys that went."""
    return [one.key for one in sweep.remove(sweep.look().orphans)]


def labels(generation: int) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata(file_metadata({"generation": generation})), out)
    return out.getvalue()
