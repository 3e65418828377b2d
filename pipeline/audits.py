"""What people said of audited masks: rows of Parquet, found again by review_id or by video, frame and object."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.certificate_parts import ErrorRate, MeanIou
from pipeline.errors import MasksieveError

VERDICTS = ("accept", "reject", "absent")
WHERE = ("video_id", "frame_index", "object_id")
_TYPES = {"frame_index": pa.int64(), "object_id": pa.int64(), "iou": pa.float64(), "audit": pa.bool_()}


class AuditError(MasksieveError):
    """Verdicts that cannot be read, or contradict each other."""


class Audited(NamedTuple):
    """An accepted row that was drawn for a person to see.

    Attributes:
        rate: probability with which it was drawn.
        empty: the mask has no pixel.
    """

    review_id: str
    video_id: str
    frame_index: int
    object_id: int
    label: str | None
    rate: float
    empty: bool


class Verdicts:
    """What was said of rows: `verdict` (accept, reject, or absent: the object is not there), or `iou` with the truth.

    A null is no verdict. Where both columns are there, `iou` counts in the rows that have one. A row whose `audit` is
    false is passed over.

    Args:   path: a Parquet file, or a folder of them, with `review_id` or with video_id, frame_index, object_id.
    Raises: AuditError for files that cannot be read, columns that are missing, or two verdicts on one row.
    """

    def __init__(self, path: Path) -> None:
        files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
        if not files:
            raise AuditError(f"verdicts as Parquet at {path}", "none", "give a file or a folder of them")
        self._said: dict[object, tuple[str | None, float | None]] = {}
        for file in files:
            for row in _read(file):
                self._note(row, file)

    def __len__(self) -> int:
        return len(self._said)

    def loss(self, row: Audited, promise: ErrorRate | MeanIou) -> float | None:
        """What accepting the row cost, by the promise; None if nobody judged it.

        Raises: AuditError for a promise of a mean IoU and a verdict without one.
        """
        said = self._said.get(row.review_id) or self._said.get((row.video_id, row.frame_index, row.object_id))
        if said is None:
            return None
        verdict, iou = said
        if isinstance(promise, MeanIou):
            if iou is None:
                step = "measure the true IoU of the audited masks: accept and reject do not tell it"
                raise AuditError(f"a column iou, for the promise {promise}", f"the verdict {verdict}", step)
            return 1 - iou
        if iou is not None:
            return float(iou < promise.bad_iou)
        return float(not row.empty if verdict == "absent" else verdict == "reject")

    def _note(self, row: dict[str, Any], file: Path) -> None:
        verdict, iou = row.get("verdict"), row.get("iou")
        iou = None if iou is None or math.isnan(iou) else float(iou)
        if (verdict is None and iou is None) or row.get("audit") is False:
            return
        where = tuple(row.get(name) for name in WHERE)
        key = row.get("review_id") if None in where else where  # a review_id may stand for several rows
        if key is None:
            expected = f"review_id or {', '.join(WHERE)} in every row of {file}"
            raise AuditError(expected, "an empty one", "fill it in")
        if verdict not in (None, *VERDICTS):
            raise AuditError(
                f"a verdict out of {', '.join(VERDICTS)}", f"{verdict!r} for {key} in {file}", "correct it"
            )
        if iou is not None and not 0 <= iou <= 1:
            raise AuditError("iou in [0, 1]", f"{iou:g} for {key} in {file}", "give a share")
        if self._said.setdefault(key, (verdict, iou)) != (verdict, iou):
            raise AuditError("one verdict on each row", f"two that differ on {key}", "keep the one that counts")


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        names = set(pq.read_schema(file).names)
        wanted = [name for name in ("review_id", *WHERE, "verdict", "iou", "audit") if name in names]
        if not ({"review_id"} <= names or set(WHERE) <= names) or not names & {"verdict", "iou"}:
            expected = f"columns review_id, or {', '.join(WHERE)}; and verdict or iou"
            raise AuditError(expected, f"{', '.join(sorted(names))} in {file}", "add them")
        table = pq.read_table(file, columns=wanted, partitioning=None)
        for place, name in enumerate(table.column_names):
            table = table.set_column(place, name, table.column(name).cast(_TYPES.get(name, pa.string())))
    except (OSError, pa.ArrowException) as error:
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise AuditError(f"readable verdicts in {file}", got, "write them as Parquet") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
