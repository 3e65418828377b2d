"""Facts as the model alone made them, whatever people corrected since: what evidence is held against.

A correction replaces masks, the bad ones above all. A certificate is about masks that nobody has looked at yet, so
truth, audits and the mix of sources are held against the generation that the first answer was laid over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.columns import Rows, equals
from pipeline.ledger import Commit, Ledger
from pipeline.local_facts import local_facts
from pipeline.policy import Policy
from pipeline.records import MASKS, read_metadata, upgraded
from pipeline.route import Sides
from pipeline.storage.objects import ObjectStore
from pipeline.survey import HEAVY_COLUMNS


def answered(rows: Rows) -> bool:
    """Whether people's answers were laid over some of these rows."""
    return bool((equals(rows, "prompted", "answer") | equals(rows, "prompted", "reject")).any())


def as_made(ledger: Ledger, commit: Commit) -> Commit:
    """The generation that people's answers were laid over; of facts without answers, the same.

    Raises: StorageError if it is gone or damaged.
    """
    return commit if commit.corrects is None else ledger.read(commit.video_id, commit.corrects)


def outdated(made: Commit, newest: Commit) -> bool:
    """Whether other heads, another model, prompts or settings came after the generation that answers were laid over:
    what these alone would have made nobody knows, so that the video is no evidence of them."""
    return made.label_key != newest.label_key


def light_rows(file: pq.ParquetFile) -> pa.Table:
    """All columns of facts but the masks, as this release names them."""
    schema = file.schema_arrow
    there = set(schema.names) - set(HEAVY_COLUMNS)
    names = [name for name in MASKS.names if name in there]
    version = str(read_metadata(schema).get("schema_version"))
    return pa.Table.from_batches([upgraded(batch, version) for batch in file.iter_batches(columns=names)])


def decided_as_made(
    store: ObjectStore,
    ledger: Ledger,
    commit: Commit,
    labels_metadata: dict[str, Any],
    scratch_dir: Path | None = None,
) -> pa.Table:
    """What today's policy of a corrected video says of the masks as they were made.

    Args:    commit: the newest. labels_metadata: of its labels, for the policy.
    Returns: the light columns of the facts, and uncertainty and audit.
    Raises:  StorageError for facts that are gone or damaged.
    """
    with local_facts(store, as_made(ledger, commit), scratch_dir) as path, pq.ParquetFile(path) as file:
        rows = light_rows(file)
    policy, model = Policy.model_validate(labels_metadata["policy"]), (labels_metadata.get("model") or {}).get("name")
    sides = Sides(rows, policy, commit.first_seen, model)
    uncertainty = pa.array(sides.examined.uncertainty_n)
    return rows.append_column("uncertainty", uncertainty).append_column("audit", pa.array(sides.audit_n))
