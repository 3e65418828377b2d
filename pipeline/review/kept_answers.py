"""People's answers on a video that is labelled anew: prompts of its objects, and laid over its rows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import rle
from pipeline.ledger import Commit, Ledger
from pipeline.local_facts import DamagedFacts, local_facts
from pipeline.prompts import FramePrompt, ObjectPrompts, PromptSet, prompt_set
from pipeline.review.answers import read_answers
from pipeline.review.laid_over import Key, Said, exchanged, last_said, lay_over
from pipeline.shot_log import ShotLog

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptAnswers:
    """What the next generation of a video takes over; nothing where nobody answered.

    Args:
        said: by row. answers, corrects: as the commit says them.
    """

    said: Mapping[Key, Said] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    corrects: int | None = None

    @classmethod
    def of(cls, ledger: Ledger, commit: Commit | None, prompts: PromptSet, scratch_dir: Path | None) -> KeptAnswers:
        """Those that the facts of a commit rest on, about the objects of these prompts.

        Raises: ReviewError for an answer that cannot be read; StorageError if the store does not answer.
        """
        if commit is None or not commit.answers:
            return cls()
        named = [one for one in read_answers(ledger.store, commit.video_id) if one.answer_id in commit.answers]
        said = last_said(named, ledger, commit, scratch_dir)
        others = _others(ledger, commit, prompts, scratch_dir) & {one for _, one in said}
        if others:
            numbers = ", ".join(map(str, sorted(others)))
            log.warning("what people said of object %s counts no more: the prompts name something else so", numbers)
        said = {key: one for key, one in said.items() if key[1] not in others}
        return cls(said, commit.answers, commit.corrects)

    def prompts(self, prompts: PromptSet, frames: Set[int] | None, image_size: int) -> PromptSet:
        """Prompts with the masks that people gave on labelled frames.

        Args:   frames: those that are labelled; None for every one. image_size: px, of the model.
        """
        if not self.said:
            return prompts
        objects = []
        for one in prompts.objects:
            own = {frame: said for (frame, object_id), said in self.said.items() if object_id == one.object_id}
            there = {frame: said for frame, said in own.items() if frames is None or frame in frames}
            objects.append(with_said(one, there, image_size))
        return prompt_set(objects, f"{prompts.source} and answers")

    def masks(self, batches: Iterable[pa.RecordBatch], shots: ShotLog) -> Iterator[pa.RecordBatch]:
        """Rows of facts with the answers on them; `shots` learns where people gave masks."""
        for (frame, object_id), said in self.said.items():
            if said.mask is not None and said.mask.area_px:
                shots.prompt(object_id, frame)
        return lay_over(batches, self.said) if self.said else iter(batches)

    def sidecar(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Rows of a sidecar without those of given masks."""
        return exchanged(batches, self.said.keys(), (), schema) if self.said else iter(batches)


def _others(ledger: Ledger, commit: Commit, prompts: PromptSet, scratch_dir: Path | None) -> set[int]:
    """Objects whose number had another label when people spoke of them."""
    try:
        with local_facts(ledger.store, commit, scratch_dir) as path:
            rows = pq.read_table(path, columns=["object_id", "label"])
    except DamagedFacts:
        return set()
    before = dict(zip(rows["object_id"].to_pylist(), rows["label"].to_pylist(), strict=True))
    return {one.object_id for one in prompts.objects if before.get(one.object_id, one.label) != one.label}


def with_said(one: ObjectPrompts, said: Mapping[int, Said], image_size: int) -> ObjectPrompts:
    """An object's prompts with the masks that people gave of it.

    A prompt on a frame of which somebody said otherwise goes, unless it is all that is left. A mask of which nothing is
    left at the model's size counts on its frame alone: the model cannot be shown it.

    Args:   said: by the frame numbers of the prompts. image_size: px, of the model.
    """
    frames = {frame.frame_index: frame for frame in one.frames if not ((s := said.get(frame.frame_index)) and s.shown)}
    for number, word in said.items():
        if word.prompts and word.seen(image_size) and word.mask is not None:
            frames[number] = FramePrompt(number, mask_hw=rle.decode(word.mask.counts, word.height, word.width))
    kept = tuple(frames[number] for number in sorted(frames)) or one.frames
    return replace(one, frames=kept)
