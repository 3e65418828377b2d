"""What people said of single rows, and how it is laid over facts: their masks as they are, all other rows untouched."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import rle
from pipeline.columns import equals
from pipeline.errors import PromptError, StorageError
from pipeline.ledger import Commit, Ledger
from pipeline.local_facts import DamagedFacts, local_facts
from pipeline.prompt_inputs import is_seen
from pipeline.prompt_masks import mask_from_rle
from pipeline.records import HEAD_COLUMNS, MASKS
from pipeline.review.answers import Answer, ReviewError
from usam.targets import STACKED

log = logging.getLogger(__name__)

Key = tuple[int, int]
"""frame_index and object_id: the order of rows."""

SCORES = (
    "sam_score", "object_score", "stability", "entropy_bits", *HEAD_COLUMNS, STACKED, "temporal_iou", "area_change",
    "score_source",
)  # fmt: skip
"""What a row that nobody predicted does not have."""


@dataclass(frozen=True)
class Said:
    """What a person said of one row.

    Args:
        answer: whose.
        mask: what is right there; of no pixel where the object is not there; None where the mask that was shown is
            wrong and nobody said what is right.
        shown: whether it is the very frame that the person looked at, and not another one of its stretch.
        height, width: of the video, px.
    """

    answer: Answer
    mask: rle.EncodedMask | None
    shown: bool
    height: int
    width: int

    @property
    def prompts(self) -> bool:
        """Whether SAM2 is to remember the mask."""
        return self.shown and self.answer.verdict in ("accept", "pick", "fix") and bool(self.mask and self.mask.area_px)

    def seen(self, image_size: int) -> bool:
        """Whether anything of the mask is left at the model's size."""
        mask = self.mask
        return mask is not None and is_seen(rle.decode(mask.counts, self.height, self.width), image_size)


def last_said(
    answers: Sequence[Answer], ledger: Ledger, newest: Commit, scratch_dir: Path | None = None
) -> dict[Key, Said]:
    """What counts on each row: the last answer that is about it.

    Args:    answers: on one video, by time.
             newest: whose rows they are laid over.
    Returns: by row. An accepted mask is the one that was shown; where the facts that it was shown from are gone, and
             the mask of the newest ones is another, the answer says nothing.
    Raises:  ReviewError for a mask that is none of this video's size; StorageError if a store does not answer.
    """
    shown = _Shown(ledger, newest, scratch_dir)
    found: dict[Key, Said] = {}
    for answer in answers:
        if answer.mask is not None:
            found[answer.frame_index, answer.object_id] = Said(
                answer, _given(answer), True, answer.mask.height, answer.mask.width
            )  # fmt: skip
            continue
        whole = answer.scope == "stretch"
        first, last = (answer.first_frame, answer.last_frame) if whole else (answer.frame_index, answer.frame_index)
        for said in shown.masks(answer, first, last):
            found[said[0], answer.object_id] = said[1]
    return found


def _given(answer: Answer) -> rle.EncodedMask:
    given = answer.mask
    assert given is not None
    plain = {"size": [given.height, given.width], "counts": given.counts}
    try:
        return rle.encode_mask(mask_from_rle(plain, f"answer {answer.answer_id}"))
    except PromptError as error:
        raise ReviewError(error.expected, error.got, "remove the answer") from error


class _Shown:
    """Masks as they were shown to people, from the facts of that generation."""

    def __init__(self, ledger: Ledger, newest: Commit, scratch_dir: Path | None) -> None:
        self._ledger, self._newest, self._scratch_dir = ledger, newest, scratch_dir
        self._tables: dict[int, pa.Table | None] = {}

    def masks(self, answer: Answer, first: int, last: int) -> Iterator[tuple[int, Said]]:
        """The labelled frames of the object in a range, with what the answer says of each."""
        there = self._table(answer.generation)
        if there is None:
            there = self._table(self._newest.generation)
        if there is None:
            return
        wanted = pc.and_(
            pc.equal(there["object_id"], answer.object_id),
            pc.and_(pc.greater_equal(there["frame_index"], first), pc.less_equal(there["frame_index"], last)),
        )
        rows = there.filter(wanted).to_pylist()
        if answer.verdict == "accept" and self._table(answer.generation) is None:
            same = any(r["frame_index"] == answer.frame_index and r["area_px"] == answer.area_px for r in rows)
            if not same:
                log.warning("answer %s is about masks that are gone: it changes nothing", answer.answer_id)
                return
        for row in rows:
            frame, height, width = row["frame_index"], row["height"], row["width"]
            mask = None
            if answer.verdict == "absent":
                mask = rle.empty_mask(height, width)
            elif answer.verdict == "accept":
                if row["rle"] is None:
                    continue
                mask = rle.EncodedMask(row["rle"], row["area_px"], row["bbox_xyxy"])
            yield frame, Said(answer, mask, frame == answer.frame_index, height, width)

    def _table(self, generation: int) -> pa.Table | None:
        """Masks of a generation; None where its facts are gone."""
        if generation not in self._tables:
            self._tables[generation] = self._read(generation)
        return self._tables[generation]

    def _read(self, generation: int) -> pa.Table | None:
        store, newest = self._ledger.store, self._newest
        columns = ["frame_index", "object_id", "height", "width", "rle", "area_px", "bbox_xyxy"]
        try:
            commit = newest
            if generation != newest.generation:
                commit = self._ledger.read(newest.video_id, generation)
            with local_facts(store, commit, self._scratch_dir) as path:
                return pq.read_table(path, columns=columns)
        except DamagedFacts:
            return None
        except StorageError:
            if generation <= newest.generation:
                raise
            return None


def laid(row: Mapping[str, Any], said: Said) -> dict[str, Any]:
    """A row of facts with what a person said of it."""
    mask = said.mask
    kind: Literal["answer", "reject"] = "reject" if mask is None else "answer"
    visibility = "untracked" if mask is None else "visible" if mask.area_px else "absent"
    return {
        **row, **dict.fromkeys(SCORES), "rle": mask and mask.counts, "area_px": mask and mask.area_px,
        "bbox_xyxy": mask and mask.bbox_xyxy, "visibility": visibility, "prompted": kind, "direction": "none",
    }  # fmt: skip


def lay_over(batches: Iterable[pa.RecordBatch], said: Mapping[Key, Said]) -> Iterator[pa.RecordBatch]:
    """Rows of facts with what people said of them; a mask that came with the prompts gives way on the shown frame only.

    Args:    batches: of `records.MASKS`, in order.
    """

    def new(row: dict[str, Any]) -> dict[str, Any]:
        one = said[row["frame_index"], row["object_id"]]
        return row if row["prompted"] == "mask" and not one.shown else laid(row, one)

    yield from changed(batches, said.keys(), new)


def changed(
    batches: Iterable[pa.RecordBatch], keys: Set[Key], new: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[pa.RecordBatch]:
    """Facts of which some rows are made anew; batches without any of them pass as they are."""
    for batch in batches:
        here = _find(batch, keys)
        if not here:
            yield batch
            continue
        rows = [new(row) for row in batch.take(pa.array(here)).to_pylist()]
        order = np.arange(batch.num_rows)
        order[here] = batch.num_rows + np.arange(len(here))
        both = pa.concat_tables(
            [pa.Table.from_batches([batch]), pa.Table.from_pylist(rows, schema=batch.schema)]
        ).combine_chunks()
        yield from both.take(pa.array(order)).combine_chunks().to_batches()


def exchanged(
    batches: Iterable[pa.RecordBatch], gone: Set[Key], rows: Iterable[Mapping[str, Any]], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """A sidecar without the rows of some masks, and with others, all in order.

    Args:    gone: whose rows go. rows: those that come, of whatever masks.
    """
    waiting = sorted(rows, key=lambda row: (row["frame_index"], row["object_id"]))
    for batch in batches:
        drop = _find(batch, gone)
        keep = np.ones(batch.num_rows, bool)
        keep[drop] = False
        last = (batch.column("frame_index")[-1].as_py(), batch.column("object_id")[-1].as_py()) if len(batch) else None
        ready = 0
        while last and ready < len(waiting) and (waiting[ready]["frame_index"], waiting[ready]["object_id"]) <= last:
            ready += 1
        if not drop and not ready:
            yield batch
            continue
        parts = [pa.Table.from_batches([batch]).filter(pa.array(keep)), pa.Table.from_pylist(waiting[:ready], schema)]
        both = pa.concat_tables([part.cast(schema) for part in parts])
        order = [
            (name, "ascending") for name in ("frame_index", "object_id", "candidate_index") if name in schema.names
        ]
        yield from both.sort_by(order).combine_chunks().to_batches()
        waiting = waiting[ready:]
    if waiting:
        yield from pa.Table.from_pylist(waiting, schema).to_batches()


def _find(batch: pa.RecordBatch, keys: Set[Key]) -> list[int]:
    """The places of the rows of some masks."""
    pairs = zip(batch.column("frame_index").to_pylist(), batch.column("object_id").to_pylist(), strict=True)
    return [place for place, pair in enumerate(pairs) if pair in keys]


def across_cuts(batches: Iterable[pa.RecordBatch], seen: Set[tuple[int, int]]) -> Iterator[pa.RecordBatch]:
    """Fill `across_cut` anew: no mask that was prompted or given lies in the row's shot.

    Args:    seen: object_id and shot_index of every prompted or given row of the video.
    """
    for batch in batches:
        pairs = zip(batch.column("object_id").to_pylist(), batch.column("shot_index").to_pylist(), strict=True)
        across = pa.array([pair not in seen for pair in pairs])
        yield batch.set_column(batch.schema.get_field_index("across_cut"), MASKS.field("across_cut"), across)


def prompted_shots(batches: Iterable[pa.RecordBatch]) -> set[tuple[int, int]]:
    """object_id and shot_index of every row with a prompt or a given mask; a word that the object is not there vouches
    for no mask."""
    found: set[tuple[int, int]] = set()
    for batch in batches:
        prompted_n = pc.is_valid(batch.column("prompted")).to_numpy(zero_copy_only=False)
        gone_n = equals(batch, "prompted", "answer") & ~equals(batch, "visibility", "visible")
        some = batch.filter(pa.array(prompted_n & ~gone_n & ~equals(batch, "visibility", "untracked")))
        found.update(zip(some.column("object_id").to_pylist(), some.column("shot_index").to_pylist(), strict=True))
    return found
