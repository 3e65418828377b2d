"""What another policy would change: how many masks leave which side for which, by source and label, without writing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.backing import require_certificate
from pipeline.columns import codes
from pipeline.derive import derived_metadata
from pipeline.errors import MasksieveError, StorageError, UnavailableError
from pipeline.ledger import Commit, Ledger
from pipeline.local_facts import local_facts
from pipeline.policy import Policy
from pipeline.records import MASKS
from pipeline.retune import THREADS, look
from pipeline.route import CHOICES, Sides
from pipeline.scratch import scratch_folder
from pipeline.selection import Selection
from pipeline.settings import Settings
from pipeline.storage.manifest import derived_key
from pipeline.storage.objects import ObjectStore
from pipeline.survey import HEAVY_COLUMNS, survey

UNLABELLED = "none"
"""The side of rows before, where there are no labels of these facts."""
SIDES = (*CHOICES, UNLABELLED)
_COLUMNS = tuple(name for name in MASKS.names if name not in HEAVY_COLUMNS)


class Move(NamedTuple):
    """Masks of one source and label that are on one side and would be on another, or stay."""

    source: str
    label: str | None
    before: str
    after: str


def preview(
    store: ObjectStore, policy: Policy, settings: Settings, selection: Selection | None = None
) -> Iterator[tuple[str, int, Counter[Move] | MasksieveError]]:
    """Decide in memory about every video that a selection means.

    Args:   settings: the scratch folder; its policy does not count.
    Yields: video_id, how many videos there are in all, and the masks by move; or why nobody can tell.
    Raises: as `pipeline.retune.begin_retune`.
    """
    require_certificate(store, policy)
    ledger = Ledger(store)
    wanted = sorted(video_id for video_id, _ in look(store, selection or Selection(), lambda commit: True))

    def one(video_id: str, scratch: Path) -> Counter[Move] | MasksieveError:
        try:
            commit = ledger.newest(video_id)
            return Counter() if commit is None else moves(store, commit, policy, scratch)
        except MasksieveError as error:
            return error

    left = iter(wanted)
    with scratch_folder(settings) as scratch, ThreadPoolExecutor(THREADS) as pool:
        while some := list(islice(left, 4 * THREADS)):
            found = pool.map(lambda video_id: one(video_id, Path(scratch)), some)
            yield from ((video_id, len(wanted), moved) for video_id, moved in zip(some, found, strict=True))


def moves(store: ObjectStore, commit: Commit, policy: Policy, scratch_dir: Path | None = None) -> Counter[Move]:
    """The masks of one video by move. Raises StorageError if its facts are damaged."""
    with local_facts(store, commit, scratch_dir) as path, pq.ParquetFile(path) as facts:
        surveyed = survey(facts, policy, commit, columns=_COLUMNS)
        before_n = _sides_now(store, commit, facts.metadata.num_rows)
        moved: Counter[Move] = Counter()
        start = 0
        for batch in surveyed.batches():
            sides = Sides(batch, policy, commit.first_seen, surveyed.model)
            after_n = sides.choice_n
            after_n[surveyed.places.unseen(batch, after_n == CHOICES.index("review"))] = CHOICES.index("hold")
            label_n, labels = codes(batch, "label")
            now_n = before_n[start : start + batch.num_rows]
            start += batch.num_rows
            key_n = ((label_n + 1) * len(SIDES) + now_n) * len(SIDES) + after_n
            for key, count in zip(*(one.tolist() for one in np.unique(key_n, return_counts=True)), strict=True):
                rest, after = divmod(key, len(SIDES))
                label, now = divmod(rest, len(SIDES))
                moved[Move(commit.first_seen, labels[label - 1], SIDES[now], SIDES[after])] += count
        return moved


def _sides_now(store: ObjectStore, commit: Commit, rows: int) -> npt.NDArray[np.int64]:
    """Which side each row is on now, in the order of the facts."""
    nowhere = np.full(rows, SIDES.index(UNLABELLED))
    metadata = derived_metadata(store, commit, "labels") or {}
    if metadata.get("facts_sha256") != commit.file("masks").sha256:
        return nowhere
    try:
        with store.open(derived_key("labels", commit.first_seen, commit.video_id)) as file:
            table = pq.read_table(file, columns=["decision"], read_dictionary=["decision"])
    except UnavailableError:
        raise
    except StorageError:
        return nowhere
    side_n, names = codes(table, "decision")
    return np.array([SIDES.index(name or UNLABELLED) for name in names])[side_n]
