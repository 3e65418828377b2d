"""Truth as a sweep looks it up: for each video the IoU of its rows, sorted by frame and object, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.columns import Floats, codes, floats
from pipeline.errors import StorageError
from pipeline.judged import TruthError
from pipeline.sweep_input import Labels
from pipeline.truth import open_truth, read_truth

Ints = NDArray[np.int64]
_KEYS = ("video_id", "frame_index", "object_id")


@dataclass(frozen=True)
class TrueRows:
    """What is true of some rows of a video.

    Args:
        key_n: (n,) `row_key` of each, ascending.
        iou_n: (n,) float64, IoU with the truth, 0..1.
        weight_n: (n,) float64, so many rows it stands for.
    """

    key_n: Ints
    iou_n: Floats
    weight_n: Floats

    def find(self, key_m: Ints) -> tuple[Ints, Ints]:
        """Which of these rows have truth, and where it is."""
        at = np.searchsorted(self.key_n, key_m).clip(0, len(self.key_n) - 1)
        hits = np.flatnonzero(self.key_n[at] == key_m)
        return hits, at[hits]


Truth = Mapping[str, TrueRows]


def row_key(frame_n: NDArray[Any], object_n: NDArray[Any]) -> Ints:
    """Frame and object of a row of a video as one number."""
    return (frame_n.astype(np.int64) << 32) | (object_n.astype(np.int64) & 0xFFFFFFFF)


def iou_of(truth: Truth, video_id: str, frame_index: int, object_id: int) -> float | None:
    """What the truth says of one row; None where it says nothing."""
    if video_id not in truth:
        return None
    hits, at = truth[video_id].find(row_key(np.array([frame_index]), np.array([object_id])))
    return float(truth[video_id].iou_n[at[0]]) if len(hits) else None


def load_truth(
    path: str | Path,
    labels: Labels,
    *,
    scratch_dir: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Truth:
    """Truth in any format that `pipeline.truth` knows; Parquet with the IoU of rows, by video_id, is taken as it is.

    Args:
        labels: what is swept: masks are held against the facts of its output.
        progress: called with a video, how many are done, and how many there are.
    Raises: TruthError if it cannot be read, fits no row, or needs the facts of an output where there are labels alone.
    """
    ious = _iou_files(Path(path).expanduser())
    if ious:
        return _of_ious(ious)
    source = open_truth(path)
    if not labels.output:
        got = f"{source.kind} truth, and labels without their output"
        raise TruthError(
            "the output that the truth is of", got, "give the --out of masksieve label, or the IoU of rows"
        )
    total, found = len(source.names()), dict[str, TrueRows]()
    drops = sorted({file.source for file in labels.files})
    for video in read_truth(source, labels.store, drops=drops, corrected=True, scratch_dir=scratch_dir):
        keys = row_key(*(video.facts.column(name).to_numpy() for name in _KEYS[1:]))
        found[video.commit.video_id] = _sorted(keys, video.iou_n, video.weight_n)
        if progress is not None:
            progress(video.commit.video_id[:12], len(found), total)
    return found


def _iou_files(root: Path) -> list[Path]:
    """Parquet files with an IoU for rows that are named by video_id; none if the truth is of another kind."""
    files = [root] if root.suffix == ".parquet" and root.is_file() else []
    files = files or (sorted(root.rglob("*.parquet")) if root.is_dir() else [])
    try:
        names = [set(pq.read_schema(file).names) for file in files]
    except (OSError, pa.ArrowException):
        return []  # the reader of all formats says what is wrong
    return files if all({*_KEYS, "iou"} <= one and "verdict" not in one for one in names) else []


def _of_ious(files: list[Path]) -> Truth:
    try:
        table = pa.concat_tables(_typed(file) for file in files).unify_dictionaries().drop_null()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise StorageError(
            f"readable rows in {files[0].parent}", " ".join(str(error).split()), "write them anew"
        ) from error
    iou_n = floats(table, "iou")
    if not ((iou_n >= 0) & (iou_n <= 1)).all():
        bad = iou_n[~((iou_n >= 0) & (iou_n <= 1))][0]
        raise TruthError("iou in [0, 1]", f"{bad:g} in {files[0]}", "give a share; leave it empty if unknown")
    video_n, names = codes(table, "video_id")
    keys = row_key(table.column("frame_index").to_numpy(), table.column("object_id").to_numpy())
    order = np.argsort(video_n, kind="stable")
    bounds = np.searchsorted(video_n[order], np.arange(len(names) + 1))
    found: dict[str, TrueRows] = {}
    for name, start, stop in zip(names, bounds[:-1], bounds[1:], strict=True):
        here = order[start:stop]
        if name is not None and len(here):
            found[name] = _sorted(keys[here], iou_n[here], np.ones(len(here)))
            if (np.diff(found[name].key_n) == 0).any():
                raise TruthError("each row once", f"one twice for video {name[:24]} in {files[0]}", "keep one row each")
    return found


def _typed(file: Path) -> pa.Table:
    """The columns of a file, of the types that all files share."""
    table = pq.read_table(file, columns=[*_KEYS, "iou"], read_dictionary=["video_id"])
    videos = table["video_id"]
    if not pa.types.is_dictionary(videos.type):
        videos = videos.cast(pa.string()).dictionary_encode()
    numbers = [table[name].cast(pa.float64() if name == "iou" else pa.int64()) for name in (*_KEYS[1:], "iou")]
    return pa.Table.from_arrays([videos, *numbers], [*_KEYS, "iou"])


def _sorted(key_n: Ints, iou_n: Floats, weight_n: Floats) -> TrueRows:
    order = np.argsort(key_n, kind="stable")
    return TrueRows(key_n[order], iou_n[order], weight_n[order])
