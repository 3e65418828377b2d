"""Truth as rows of Parquet: IoU, true masks, or the verdicts of people who reviewed; read by video, group by group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import rle
from pipeline.judged import Fact, Judged, TruthError, said
from usam.datasets.rle import Runs
from usam.errors import DatasetError

VIDEO_COLUMNS = ("video_id", "video")
KEYS = ("frame_index", "object_id")
MASK = ("rle", "height", "width")
VERDICTS = ("accept", "reject", "absent")
MARK = "area_px"
_TYPES = {"iou": pa.float64(), "review_probability": pa.float64(), "rle": pa.binary(), "audit": pa.bool_()}
_SEEN = ("review_probability", "audit")
Place = tuple[Path, int]


class RowFiles:
    """Rows that are judged: video_id or video, frame_index, object_id, and one of

    - `verdict`: accept, reject, or absent (the object is not there); null is not judged. `review_probability` says how
      likely the row was to be shown, in (0, 1]; without that column, or where it is empty and there is `audit`, only
      rows whose `audit` is true count. Where `iou` is there too it counts in the rows that have one.
    - `iou` of the predicted mask with the truth, in [0, 1]; null is not judged.
    - `rle`, `height`, `width`: the true mask as COCO counts, of no pixel where the object is absent.

    A verdict or an IoU is about one very mask. Where `area_px` of it is there, as in the review list, a row whose mask
    has another size by now is refused.

    The first of these that is there counts. Of a file one row group is in memory at a time.

    Args:   root: a Parquet file, or a folder of them with equal columns.
    Raises: TruthError for missing or repeated columns, or files that cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        files = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
        if not files:
            raise TruthError(f"Parquet in {root}", "none", "give a file or a folder of them")
        self._places: dict[str, list[Place]] = {}
        self._group: tuple[Place, pa.Table] | None = None
        self.kind, self._columns = _contract(files[0])
        for file in files:
            if _contract(file) != (self.kind, self._columns):
                got = f"others in {file}"
                raise TruthError(f"the columns of {files[0]} in every file", got, "give one kind of rows at a time")
            for group, names in _videos(file, self._columns[0]):
                for name in names:
                    self._places.setdefault(name, []).append((file, group))

    def names(self) -> Sequence[str]:
        """Videos in the order in which they lie."""
        return list(self._places)

    def judge(self, name: str, facts: Iterable[Fact]) -> Iterator[Judged]:
        """Judge the rows of one video.

        Raises: TruthError for a value that is none, or a row that comes twice and differs.
        """
        rows = self._rows(name)
        for fact in facts:
            row = rows.get((fact.frame_index, fact.object_id))
            if row is not None:
                where = f"{said(name, fact.frame_index, fact.object_id)} in {self.where}"
                if row.get(MARK) not in (None, fact.area_px):
                    got = f"one of {row[MARK]} px, for {where}"
                    step = "it was labelled anew since: have it judged again, or leave the row out"
                    raise TruthError(f"a judgement of the mask there, {fact.area_px} px", got, step)
                yield Judged(fact.frame_index, fact.object_id, self._iou(row, fact, where), _weight(row, where))

    def _rows(self, name: str) -> dict[tuple[int, int], dict[str, Any]]:
        found: dict[tuple[int, int], dict[str, Any]] = {}
        for place in self._places[name]:
            table = self._read(place)
            for row in table.filter(pc.equal(table[self._columns[0]], name)).to_pylist():
                if None in (row["frame_index"], row["object_id"]):
                    raise TruthError(
                        f"frame_index and object_id in every row of {place[0]}", "an empty one", "fill it in"
                    )
                key = (row["frame_index"], row["object_id"])
                if self._silent(row):
                    continue
                if found.setdefault(key, row) != row:
                    got = f"two that differ for {said(name, *key)} in {self.where}"
                    raise TruthError("each row once", got, "keep one row each; of an output give one layer")
        return found

    def _silent(self, row: dict[str, Any]) -> bool:
        """Whether nobody judged the row, or it was shown because it was uncertain and nobody says how likely."""
        if self.kind == "verdicts":
            unweighted = "audit" in row and not row["audit"] and row.get("review_probability") is None
            return row["verdict"] is None or unweighted
        return row["rle" if self.kind == "masks" else "iou"] is None

    def _iou(self, row: dict[str, Any], fact: Fact, where: str) -> float:
        if self.kind == "verdicts":
            verdict = row["verdict"]
            if verdict not in VERDICTS:
                raise TruthError(f"a verdict out of {', '.join(VERDICTS)}", f"{verdict!r} for {where}", "correct it")
            if row.get("iou") is not None:  # of a mask that a person put in its place
                return _share(row["iou"], where)
            right = fact.area_px == 0 if verdict == "absent" else verdict == "accept"
            return float(right)
        if self.kind == "iou":
            return _share(row["iou"], where)
        size = (row["height"], row["width"])
        if size != (fact.height, fact.width):
            got = f"{size[1]}x{size[0]}"
            raise TruthError(f"{fact.width}x{fact.height} for {where}", got, "give the mask at the video's size")
        try:
            runs = Runs({"size": list(size), "counts": row["rle"].decode("latin-1")}, where)
        except DatasetError as error:
            raise TruthError(error.expected, error.got, "write the mask as COCO's compressed counts") from error
        return rle.iou(fact.counts, rle.encode_mask(runs.mask()).counts, *size)

    def _read(self, place: Place) -> pa.Table:
        if self._group is None or self._group[0] != place:
            self._group = None  # let go of the last one before the next is read
            file, group = place
            try:
                with pq.ParquetFile(file) as opened:
                    table = opened.read_row_group(group, columns=list(self._columns))
                self._group = place, _cast(table)
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(file, error) from error
        return self._group[1]


def _share(iou: float, where: str) -> float:
    """An IoU that was given."""
    if not 0 <= iou <= 1:  # NaN too
        raise TruthError("iou in [0, 1]", f"{iou:g} for {where}", "give a share; leave it empty if unknown")
    return float(iou)


def _weight(row: dict[str, Any], where: str) -> float:
    """How many rows a verdict stands for."""
    if "review_probability" not in row:
        return 1.0
    probability = row["review_probability"]
    if probability is None or math.isnan(probability) or not 0 < probability <= 1:
        step = "say how likely the row was to be shown when it was reviewed"
        raise TruthError("review_probability in (0, 1]", f"{probability} for {where}", step)
    return float(1 / probability)


def _contract(file: Path) -> tuple[str, tuple[str, ...]]:
    """The kind of rows in a file, and the columns to read: the video's first."""
    try:
        names = pq.read_schema(file).names
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error
    if len(set(names)) < len(names):
        twice = ", ".join(sorted({name for name in names if names.count(name) > 1}))
        raise TruthError(f"each column of {file} once", f"{twice} more often", "drop or rename the others")
    video = next((name for name in VIDEO_COLUMNS if name in names), None)
    kind = "verdicts" if "verdict" in names else "iou" if "iou" in names else "masks"
    needed = {"verdicts": ("verdict",), "iou": ("iou",), "masks": MASK}[kind]
    missing = [name for name in (*KEYS, *needed) if name not in names]
    if video is None or missing:
        lacking = ", ".join([*([] if video else ["video_id"]), *missing])
        expected = "columns video_id (or video), frame_index, object_id, and verdict, iou, or rle, height, width"
        raise TruthError(expected, f"no {lacking} in {file}", "add them")
    seen = [name for name in _SEEN if name in names] if kind == "verdicts" else []
    if kind == "verdicts" and not seen:
        step = "keep that column of the review list: rows shown because they were uncertain speak for no others"
        raise TruthError("how likely each row was to be reviewed", f"no review_probability or audit in {file}", step)
    marked = [MARK] if MARK in names and kind != "masks" else []
    marked += ["iou"] if "iou" in names and kind == "verdicts" else []
    return kind, (video, *KEYS, *needed, *seen, *marked)


def _videos(file: Path, column: str) -> Iterator[tuple[int, list[str]]]:
    """The videos of each row group."""
    try:
        with pq.ParquetFile(file) as opened:
            for group in range(opened.num_row_groups):
                names = _cast(opened.read_row_group(group, columns=[column])).column(0).unique()
                if names.null_count:
                    raise TruthError(f"{column} in every row of {file}", "an empty one", "fill it in")
                yield group, names.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error


def _cast(table: pa.Table) -> pa.Table:
    for place, name in enumerate(table.column_names):
        text = name in (*VIDEO_COLUMNS, "verdict")
        table = table.set_column(
            place, name, table.column(name).cast(pa.string() if text else _TYPES.get(name, pa.int64()))
        )
    return table


def _unreadable(file: Path, error: Exception) -> TruthError:
    got = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return TruthError(f"readable rows in {file}", got, "write them as Parquet")
