"""What people said of masks, as rows that `calibrate` and `watch` read: one verdict an answer, and which are evidence.

Evidence is an audit: an accepted row that was drawn with a known probability and looked at by itself. The frame on
which a stretch is shown is chosen, as its most uncertain one, and its other frames are only seen in passing: such
verdicts are exported without a probability, which says that they stand for no other mask. A verdict is about a mask as
the model alone made it; one on a mask that rests on an earlier correction is no evidence either.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.columns import score
from pipeline.errors import StorageError
from pipeline.ledger import Commit, Ledger
from pipeline.local_facts import local_facts
from pipeline.review.answers import Answer, ReviewError, answered_videos, read_answers
from pipeline.review.as_made import as_made, light_rows, outdated
from pipeline.storage.objects import ObjectStore

log = logging.getLogger(__name__)

Key = tuple[int, int]
Shown = tuple[int, float]
"""Size in pixels and uncertainty of a mask."""

ANSWERS = "answers"
"""In place of a path of verdicts or truth: those that the output itself holds."""
VERDICTS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),  # whose mask was shown
        pa.field("frame_index", pa.int32(), nullable=False),
        pa.field("object_id", pa.int32(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("review_id", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),  # accept, reject, absent; pick and fix reject
        pa.field("iou", pa.float64()),  # of the shown mask with the right one, where the right one is known
        pa.field("area_px", pa.int64()),  # of the shown mask
        pa.field("audit", pa.bool_(), nullable=False),  # evidence of accepted masks
        pa.field("review_probability", pa.float64()),  # null: of a stretch, stands for no other row
        pa.field("scope", pa.string(), nullable=False),
        pa.field("reviewer", pa.string(), nullable=False),
        pa.field("answered_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("answer_id", pa.string(), nullable=False),
    ]
)


def export_verdicts(store: ObjectStore, path: Path, scratch_dir: Path | None = None) -> tuple[int, int]:
    """Write the verdicts of all answers of an output as Parquet.

    Args:    path: of the file. scratch_dir: where facts of a remote store are put meanwhile.
    Returns: verdicts, and how many of them are evidence.
    Raises:  ReviewError for an answer, StorageError for a commit that cannot be read.
    """
    rows = evidence = 0
    with pq.ParquetWriter(path, VERDICTS) as writer:
        for verdicts in _by_video(store, scratch_dir):
            writer.write_table(pa.Table.from_pylist(verdicts, schema=VERDICTS))
            rows, evidence = rows + len(verdicts), evidence + sum(one["audit"] for one in verdicts)
    return rows, evidence


@contextmanager
def answers_as_verdicts(store: ObjectStore, given: Path) -> Iterator[Path]:
    """The path of truth or verdicts that was given; where it is the word `answers`, that of a file of the output's own.

    Raises: as `export_verdicts`; ReviewError if there is no verdict on an audited mask.
    """
    if str(given) != ANSWERS:
        yield given
        return
    with TemporaryDirectory(prefix="masksieve-verdicts-") as folder:
        path = Path(folder) / "answers.parquet"
        rows, evidence = export_verdicts(store, path, Path(folder))
        if not evidence:
            step = "set policy.audit_rate and let people answer: what they see of flagged masks speaks for no others"
            raise ReviewError(f"answers on audited masks in {store.url}", f"none among {rows:,} answers", step)
        yield path


def verdict_of(answer: Answer, *, evidence: bool) -> dict[str, Any]:
    """An answer as a row of `VERDICTS`.

    Args: evidence: it is about an audited mask as the model alone made it.
    """
    said = answer.verdict if answer.verdict in ("accept", "absent") else "reject"
    iou = answer.iou
    if answer.verdict == "absent" and answer.area_px is not None:
        iou = float(answer.area_px == 0)
    kept = answer.model_dump(include={*VERDICTS.names} - {"verdict", "iou", "audit", "review_probability"})
    probability = answer.review_probability if evidence else None
    return {**kept, "verdict": said, "iou": iou, "audit": evidence, "review_probability": probability}


def _by_video(store: ObjectStore, scratch_dir: Path | None) -> Iterator[list[dict[str, Any]]]:
    ledger = Ledger(store)
    for video_id in sorted(answered_videos(store)):
        answers = list(read_answers(store, video_id))
        newest = ledger.newest(video_id)
        made = {} if newest is None else _made(store, ledger, newest, answers, scratch_dir)
        last = {_row(one): one.answer_id for one in answers if _is_evidence(one, made)}  # what was said last counts
        yield [verdict_of(one, evidence=last.get(_row(one)) == one.answer_id) for one in answers]


def _row(answer: Answer) -> Key:
    return answer.frame_index, answer.object_id


def _is_evidence(answer: Answer, made: Mapping[Key, Shown]) -> bool:
    """Whether an audited mask was shown as the model alone made it: told by its size, as with all verdicts, and by its
    uncertainty. Corrections leave audits alone that nobody answered, but draw new ones among what they carried on."""
    if not answer.audit or _row(answer) not in made:
        return False
    area_px, uncertainty = made[_row(answer)]
    scored = math.isclose(math.nan if answer.uncertainty is None else answer.uncertainty, uncertainty, abs_tol=1e-6)
    return answer.area_px == area_px and (scored or (answer.uncertainty is None and math.isnan(uncertainty)))


def _made(
    store: ObjectStore, ledger: Ledger, newest: Commit, answers: list[Answer], scratch_dir: Path | None
) -> dict[Key, Shown]:
    """The audited rows as the model alone made them."""
    wanted = {_row(one) for one in answers if one.audit}
    if not wanted:
        return {}
    made = as_made(ledger, newest)
    if outdated(made, newest):
        return {}
    try:
        with local_facts(store, made, scratch_dir) as path, pq.ParquetFile(path) as file:
            rows = light_rows(file)
    except StorageError as error:
        log.warning("the audits of %s are no evidence: %s", newest.video_id[:12], error)
        return {}
    rows = rows.filter(pc.is_in(rows["frame_index"], pa.array(sorted({frame for frame, _ in wanted}), pa.int32())))
    numbers = (rows.column(name).to_pylist() for name in ("frame_index", "object_id", "area_px"))
    uncertainty_n = np.clip(1 - score(rows), 0, 1).tolist()
    found = zip(*numbers, uncertainty_n, strict=True)
    return {(frame, number): (area_px, value) for frame, number, area_px, value in found if area_px is not None}
