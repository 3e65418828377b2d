"""Masks of a video's committed facts, by object and frame: what was labelled, read back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import rle
from pipeline.derive import local_facts
from pipeline.errors import StorageError

if TYPE_CHECKING:
    from pipeline.ledger import Commit
    from pipeline.storage.objects import ObjectStore
    from pipeline.video.sample import Sample

_COLUMNS = ["object_id", "frame_index", "rle", "height", "width", "visibility", "object_score"]


@dataclass(frozen=True, slots=True)
class StoredMask:
    """One object's mask on one frame.

    Args:
        counts: COCO compressed counts of the mask at the video's size, empty if the object is absent.
        object_score: logit of presence as the model gave it; None for a given mask.
        height, width: of the video, px.
    """

    counts: bytes
    object_score: float | None
    height: int
    width: int

    @property
    def present(self) -> bool:
        """Whether the model said that the object is there; a given mask is there if it has a pixel."""
        return self.object_score > 0 if self.object_score is not None else bool(self.mask_hw().any())

    def mask_hw(self) -> NDArray[np.bool_]:
        """(height, width) bool."""
        return rle.decode(self.counts, self.height, self.width)


class StoredMasks:
    """Masks by object_id and frame position; a frame on which an object was not followed has none.

    Args:    masks: by (object_id, position).
    """

    def __init__(self, masks: Mapping[tuple[int, int], StoredMask]) -> None:
        self._masks = dict(masks)

    def get(self, object_id: int, position: int) -> StoredMask | None:
        """The mask, or None if the object was untracked there or the frame was not read."""
        return self._masks.get((object_id, position))

    @classmethod
    def from_facts(
        cls,
        store: ObjectStore,
        commit: Commit,
        positions: Collection[int],
        *,
        sample: Sample | None = None,
        scratch_dir: Path | None = None,
    ) -> StoredMasks:
        """Read some frames of a committed generation; other row groups of the file are not decoded.

        Args:
            positions: frames as a session counts them.
            sample: which frames of the source those are; None if every frame was labelled.
            scratch_dir: where facts of a remote store are put meanwhile.
        Raises: StorageError if the facts are missing, damaged, or lack one of the frames.
        """
        at = {position if sample is None else sample.frame_index(position): position for position in positions}
        if not at:
            return cls({})
        with local_facts(store, commit, scratch_dir) as path:
            table = pq.read_table(path, columns=_COLUMNS, filters=[("frame_index", "in", sorted(at))])
        missing = set(at) - set(table["frame_index"].to_pylist())
        if missing:
            raise StorageError(
                f"rows of frame {min(missing)} in generation {commit.generation}",
                "none",
                "label the video again, or name the sample that it was labelled with",
            )
        return cls(
            {
                (row["object_id"], at[row["frame_index"]]): StoredMask(
                    row["rle"], row["object_score"], row["height"], row["width"]
                )
                for row in table.to_pylist()
                if row["visibility"] != "untracked" and row["rle"] is not None
            }
        )
