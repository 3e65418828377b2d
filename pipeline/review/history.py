"""The history of masks: who or what made each one, when and why, from commits, facts and answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.ledger import Commit, Ledger
from pipeline.local_facts import DamagedFacts, local_facts
from pipeline.records import read_metadata
from pipeline.review.answers import Answer, read_answers
from pipeline.review.laid_over import Key, last_said

_COLUMNS = ["frame_index", "object_id", "rle", "visibility", "prompted", "score_source"]
_WORDS = {
    "accept": "accepted by a reviewer", "reject": "rejected by a reviewer", "absent": "said to be absent by a reviewer",
    "pick": "picked among candidates by a reviewer", "fix": "corrected by a reviewer",
}  # fmt: skip

_PROMPTED = {
    "click": "made by {model} from a click of the prompts", "box": "made by {model} from a box of the prompts",
    "mask": "given as a mask with the prompts", "auto": "found by the automatic prompter",
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """Some masks of one object that came to be in one generation for one reason.

    Args:
        generation, at: of the commit, and when it was made; `by` and `answered_at` say who gave the cause, and when.
        what: in words.
        why: the reasons for which a person was asked; empty where none was.
        object_id; first_frame, last_frame, rows: which masks, `rows` of them between the two; all None where the facts
            of that generation are gone and nobody can say.
        answer_id: the cause, where it was an answer.
    """

    generation: int
    at: datetime
    what: str
    by: str
    why: tuple[str, ...] = ()
    object_id: int | None = None
    first_frame: int | None = None
    last_frame: int | None = None
    rows: int | None = None
    answer_id: str | None = None
    answered_at: datetime | None = None


def history(
    ledger: Ledger,
    video_id: str,
    *,
    object_id: int | None = None,
    frame_index: int | None = None,
    scratch_dir: Path | None = None,
) -> list[Change]:
    """What became of a video's masks, oldest first.

    Args:   object_id, frame_index: only masks of this object, on this frame.
    Raises: StorageError if a commit cannot be read; ReviewError for an answer that cannot.
    """
    answers = list(read_answers(ledger.store, video_id))
    before: tuple[Commit, Mapping[Key, Any] | None] | None = None
    found: list[Change] = []
    for generation in ledger.generations(video_id):
        commit = ledger.read(video_id, generation)
        try:
            with local_facts(ledger.store, commit, scratch_dir) as path:
                metadata = read_metadata(pq.read_schema(path))
                rows = _rows(pq.read_table(path, columns=_COLUMNS), object_id, frame_index)
        except DamagedFacts:
            by = "answers" if commit.answers else "a run"
            found.append(Change(generation, commit.finished_at, "facts are gone", by))
            before = commit, None
            continue
        known = None if before is None else before[1]
        new = {key: row for key, row in rows.items() if known is None or known.get(key) != row}
        found += _changes(ledger, commit, None if before is None else before[0], new, metadata, answers, scratch_dir)
        before = commit, rows
    return found


def _rows(table: pa.Table, object_id: int | None, frame_index: int | None) -> dict[Key, Any]:
    for name, value in (("object_id", object_id), ("frame_index", frame_index)):
        if value is not None:
            table = table.filter(pc.equal(table[name], value))
    columns = [table[name].to_pylist() for name in _COLUMNS]
    return {(frame, one): rest for frame, one, *rest in zip(*columns, strict=True)}


def _changes(
    ledger: Ledger, commit: Commit, before: Commit | None, new: Mapping[Key, Any], metadata: Mapping[str, Any],
    answers: list[Answer], scratch_dir: Path | None,
) -> Iterator[Change]:  # fmt: skip
    """The changes of one generation, by object and cause."""
    named = [one for one in answers if one.answer_id in commit.answers]
    said = last_said(named, ledger, commit, scratch_dir) if named else {}
    earlier = set(before.answers) if before else set()
    corrected = before is not None and set(commit.answers) > earlier and commit.label_key == before.label_key
    model = str((metadata.get("model") or {}).get("name"))
    grouped: dict[tuple[int, str], list[int]] = {}
    for (frame, one), row in sorted(new.items(), key=lambda item: (item[0][1], item[0][0])):
        word = said.get((frame, one))
        prompted = row[_COLUMNS.index("prompted") - 2]
        cause = prompted or ""
        if prompted in ("answer", "reject"):
            cause = word.answer.answer_id if word else ""
        grouped.setdefault((one, cause), []).append(frame)
    by_id = {one.answer_id: one for one in named}
    for (one, cause), frames in grouped.items():
        by, why, answered_at = model, tuple[str, ...](), None
        if cause in by_id:
            answer = by_id[cause]
            what, by, why, answered_at = _WORDS[answer.verdict], answer.reviewer, answer.reasons, answer.answered_at
        elif cause in _PROMPTED:
            what = _PROMPTED[cause].format(model=model)
        elif corrected:
            causes = [a for a in named if a.answer_id not in earlier and a.object_id == one and a.mask is not None]
            people = ", ".join(sorted({a.reviewer for a in causes}))
            which = ", ".join(f"frame {a.frame_index}" for a in causes)
            what = f"carried on by {model} from {which} as given by {people}"
        else:
            what = "scored by other heads" if metadata.get("scores_from") else f"followed by {model}"
        yield Change(
            commit.generation, commit.finished_at, what, by, why, one, frames[0], frames[-1], len(frames),
            cause if cause in by_id else None, answered_at,
        )  # fmt: skip
