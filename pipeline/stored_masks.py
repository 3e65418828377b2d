"""Masks of a video's committed facts, by object and frame: what was labelled, read back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import rle
from pipeline.errors import StorageError
from pipeline.local_facts import local_facts
from pipeline.prompts import FramePrompt, ObjectPrompts, PromptSet, prompt_set
from pipeline.records import read_metadata

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
        Raises: StorageError if the facts are missing, damaged, or do not cover one of the frames. Where all objects
            were found automatically, a labelled frame on which none is followed has no rows, and is no error.
        """
        at = {_frame_index(position, sample, commit): position for position in positions}
        if not at:
            return cls({})
        with local_facts(store, commit, scratch_dir) as path:
            table = pq.read_table(path, columns=_COLUMNS, filters=[("frame_index", "in", sorted(at))])
            missing = set(at) - set(table["frame_index"].to_pylist())
            uncovered = missing - _labelled(missing, path, sample) if missing else missing
        if uncovered:
            raise _not_covered(min(uncovered), commit)
        return cls(
            {
                (row["object_id"], at[row["frame_index"]]): StoredMask(
                    row["rle"], row["object_score"], row["height"], row["width"]
                )
                for row in table.to_pylist()
                if row["visibility"] != "untracked" and row["rle"] is not None
            }
        )


def found_objects(
    store: ObjectStore, commit: Commit, *, sample: Sample | None = None, scratch_dir: Path | None = None
) -> PromptSet:
    """What the automatic prompter asked to follow in a committed generation, for `pipeline.resume`.

    Args:    sample, scratch_dir: as for `StoredMasks.from_facts`.
    Returns: the objects that it found, at positions, each with its box, followed back no further than it was then;
             no object where it found none.
    Raises:  StorageError if the facts are missing, damaged or hold no boxes; VideoError for the sample of other facts.
    """
    with local_facts(store, commit, scratch_dir) as path:
        kept = [name for name in ("auto", "prompt_xyxy") if name in pq.read_schema(path).names]
        if "auto" not in kept:  # older than the prompter
            return prompt_set((), f"generation {commit.generation}")
        columns = ["object_id", "frame_index", *kept]
        table = pq.read_table(path, columns=columns, filters=[("auto", "=", True)])
    spans = table.group_by("object_id").aggregate([("frame_index", "min")]).to_pylist()
    first = {span["object_id"]: span["frame_index_min"] for span in spans}
    boxed = table.filter(pc.is_valid(table["prompt_xyxy"])).to_pylist() if "prompt_xyxy" in kept else []
    if first.keys() != {row["object_id"] for row in boxed}:
        raise StorageError(
            f"the box of every automatic object in generation {commit.generation}", "facts without", "label again"
        )

    def position(frame_index: int) -> int:
        return frame_index if sample is None else sample.position(frame_index)

    objects: dict[int, ObjectPrompts] = {}
    for row in boxed:
        box_xyxy = np.array(row["prompt_xyxy"], np.float32)
        prompt = FramePrompt(position(row["frame_index"]), box_xyxy=box_xyxy, auto=True)
        earliest = position(first[row["object_id"]])
        objects[row["object_id"]] = ObjectPrompts(row["object_id"], None, (prompt,), earliest)
    return prompt_set(objects.values(), f"generation {commit.generation}")


def _frame_index(position: int, sample: Sample | None, commit: Commit) -> int:
    if position < 0 or (sample is not None and position >= len(sample)):
        raise _not_covered(position, commit)
    return position if sample is None else sample.frame_index(position)


def _labelled(missing: Collection[int], path: Path, sample: Sample | None) -> set[int]:
    """Which of the frames that have no row were labelled all the same."""
    schema = pq.read_schema(path)
    if "auto" not in schema.names or not pc.all(pq.read_table(path, columns=["auto"])["auto"], min_count=0).as_py():
        return set()  # an object that a person prompted has a row on every labelled frame
    metadata = read_metadata(schema)
    if sample is None and "sampling" in metadata.get("config", {}):
        return set()
    return {index for index in missing if index < metadata.get("num_frames", index + 1)}


def _not_covered(frame: int, commit: Commit) -> StorageError:
    return StorageError(
        f"frame {frame} among those that were labelled in generation {commit.generation}",
        "none",
        "label the video again, or name the sample that it was labelled with",
    )
