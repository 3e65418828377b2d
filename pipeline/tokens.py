"""The tokens sidecar: what heads and stackers read of each scored mask, kept so that new ones need no SAM2 run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import StorageError
from pipeline.records import read_metadata
from pipeline.score import ScoredResult
from usam.features import FEATURES
from usam.heads import HeadBank
from usam.weights import bank_sha256

BATCH_ROWS = 2048
TOKEN_TYPE, FEATURE_TYPE = np.dtype("<f2"), np.dtype("<f4")


def token_rows(video_id: str, scored: ScoredResult) -> list[dict[str, Any]]:
    """The row of `records.TOKENS` of a mask; none for one that is given or untracked, or whose tokens were not kept."""
    result = scored.result
    if result.tokens_2d is None or result.chosen is None or scored.features is None:
        return []
    return [
        {
            "video_id": video_id,
            "frame_index": result.frame_index,
            "object_id": result.object_id,
            "chosen": result.chosen,
            "tokens": result.tokens_2d.float().cpu().numpy().astype(TOKEN_TYPE).tobytes(),
            "features": np.array(scored.features, FEATURE_TYPE).tobytes(),
        }
    ]


def tokens_metadata(bank: HeadBank | None) -> dict[str, Any]:
    """What a tokens file says of itself, besides what made the facts."""
    return {"mask_token_offset": 1 if bank is None else bank.mask_token_offset, "features": list(FEATURES)}


def has_features(metadata: Mapping[str, Any]) -> bool:
    """Whether a tokens file keeps this release's track features, which a stacker needs."""
    return bool(metadata.get("features") == list(FEATURES))


def token_offset(metadata: Mapping[str, Any], bank: HeadBank | None) -> int:
    """Which token was kept beside the IoU token: the chosen mask's own (1) or the one before it (0).

    Args:   bank: heads that the file may have been made with; older files do not say the offset, their heads do.
    """
    offset = metadata.get("mask_token_offset")
    if offset is None:
        offset = bank.mask_token_offset if bank and bank_sha256(bank) == metadata.get("heads_sha256") else 1
    return int(offset)


class Beside(NamedTuple):
    """Tokens of some rows of facts.

    Attributes:
        rows_m: (m,) int, which of the rows have any.
        tokens_m2d: (m, 2d) float32, IoU token and mask token.
        features_mf: (m, F) float32, `usam.features.FEATURES`; None where the file has none of these.
    """

    rows_m: NDArray[np.intp]
    tokens_m2d: NDArray[np.float32]
    features_mf: NDArray[np.float32] | None


class TokenFile:
    """Reads a tokens file beside the facts, batch by batch in their common order; memory does not grow with the video.

    Attributes:
        metadata: of the file.
        has_features: see there.
    """

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        schema = self._file.schema_arrow
        self.metadata = read_metadata(schema)
        self.has_features = has_features(self.metadata)
        names = ["frame_index", "object_id", "tokens", *(["features"] if self.has_features else [])]
        self._batches: Iterator[pa.RecordBatch] = self._file.iter_batches(BATCH_ROWS, columns=names)
        self._waiting = pa.schema([schema.field(name) for name in names]).empty_table()

    def beside(self, facts: pa.RecordBatch) -> Beside:
        """The tokens of the next rows of facts.

        Raises: StorageError if a token belongs to none of the rows, or is of another width than the others.
        """
        keys_n = _keys(facts)
        while len(keys_n) and (not len(self._waiting) or _keys(self._waiting)[-1] <= keys_n[-1]):
            batch = next(self._batches, None)
            if batch is None:
                break
            self._waiting = pa.concat_tables([self._waiting, pa.Table.from_batches([batch])])
        waiting = _keys(self._waiting)
        count = int(np.searchsorted(waiting, keys_n[-1], side="right")) if len(keys_n) else 0
        taken, self._waiting = self._waiting.slice(0, count), self._waiting.slice(count)
        rows_m = np.searchsorted(keys_n, waiting[:count])
        if not np.array_equal(keys_n[rows_m], waiting[:count]):
            raise self._odd("tokens of masks that are not there")
        tokens_m2d = self._numbers(taken, "tokens", TOKEN_TYPE)
        features_mf = self._numbers(taken, "features", FEATURE_TYPE) if self.has_features else None
        return Beside(rows_m, tokens_m2d, features_mf)

    def end(self) -> None:
        """Raises StorageError if tokens are left that no row of facts came for."""
        if len(self._waiting) or next(self._batches, None) is not None:
            raise self._odd("tokens of masks that are not there")

    def _numbers(self, rows: pa.Table, name: str, kind: np.dtype[Any]) -> NDArray[np.float32]:
        cells = rows[name].to_pylist()
        if len({len(cell) for cell in cells}) > 1 or any(len(cell) % kind.itemsize for cell in cells[:1]):
            raise self._odd(f"{name} of several widths")
        values = np.frombuffer(b"".join(cells), kind).astype(np.float32)
        return values.reshape(len(cells), -1) if cells else values.reshape(0, 0)

    def _odd(self, got: str) -> StorageError:
        return StorageError("tokens that belong to the facts beside them", got, "label the video again")


def _keys(rows: pa.RecordBatch | pa.Table) -> NDArray[np.int64]:
    """One number per row, in the order of the rows: frame, then object."""
    frames, objects = (rows[name].to_numpy().astype(np.int64) for name in ("frame_index", "object_id"))
    keys: NDArray[np.int64] = (frames << 32) + objects
    return keys
