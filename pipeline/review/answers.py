"""What a person said of a mask, as one small JSON per answer in the output: read by whoever applies or counts it.

`answers/VIDEO_ID/ANSWER_ID.json` is written once and never changed. Commits name the answers that they rest on, so what
is applied is told by the commits alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import MasksieveError
from pipeline.ledger import forgotten_key
from pipeline.storage.manifest import checked_video_id
from pipeline.storage.objects import ObjectStore

READERS = 8
Verdict = Literal["accept", "reject", "absent", "pick", "fix"]
Scope = Literal["frame", "stretch"]
_KEY = re.compile(r"answers/(?P<video>[0-9a-f]{64})/(?P<answer>[0-9a-f]{8,64})\.json")


class ReviewError(MasksieveError):
    """An item, an answer or a queue that is not as it has to be."""


class GivenMask(BaseModel):
    """A mask at the video's size, as COCO's compressed counts; of no pixel where the object is not there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    counts: str


class Answer(BaseModel):
    """One answer.

    Args:
        answer_id: made by who asks; the same answer sent twice has the same.
        item_id, review_id, video_id, generation, object_id, label: what was shown: the mask of that generation.
        frame_index: the frame that was answered on; first_frame, last_frame: of its stretch; rows: frames of the
            object in it.
        verdict: accept (the mask is right), reject (it is wrong, and nobody says what is right), absent (the object is
            not there), pick (another candidate is right), fix (`mask` is right).
        scope: whether accept, reject and absent are meant for the whole stretch or for that frame alone; pick and fix
            are always of the frame, and what is carried on from it.
        mask: what is right on `frame_index`; of pick and fix only.
        candidate: the number of the one that was picked.
        prompts: the clicks, box or strokes that led to `mask`, as JSON values; for the record.
        area_px: of the mask that was shown on `frame_index`; iou: of that mask with `mask`.
        audit: an accepted row that was drawn; review_probability: with what probability the row was shown.
        uncertainty, reasons: why it was shown.
        reviewer: who; answered_at: when; seconds: from the item being on screen to the answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    answer_id: str = Field(pattern=r"^[0-9a-f]{8,64}$")
    item_id: str
    review_id: str
    video_id: str = Field(pattern=r"^[0-9a-f]{64}$")
    generation: int = Field(ge=1)
    object_id: int = Field(ge=0)
    label: str | None = None
    frame_index: int = Field(ge=0)
    first_frame: int = Field(ge=0)
    last_frame: int = Field(ge=0)
    rows: int = Field(ge=1)
    verdict: Verdict
    scope: Scope = "stretch"
    mask: GivenMask | None = None
    candidate: int | None = Field(default=None, ge=0, le=2)
    prompts: dict[str, Any] | None = None
    area_px: int | None = Field(default=None, ge=0)
    iou: float | None = Field(default=None, ge=0, le=1)
    audit: bool = False
    review_probability: float = Field(default=1.0, gt=0, le=1)
    uncertainty: float | None = Field(default=None, ge=0, le=1)
    reasons: tuple[str, ...] = ()
    reviewer: str
    answered_at: datetime
    seconds: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.mask is not None) != (self.verdict in ("pick", "fix")):
            raise ValueError("mask goes with pick and fix, and with no other verdict")
        if not self.first_frame <= self.frame_index <= self.last_frame:
            raise ValueError("frame_index lies outside of first_frame..last_frame")
        return self


def answer_key(video_id: str, answer_id: str) -> str:
    """Where an answer lies."""
    return f"answers/{checked_video_id(video_id)}/{answer_id}.json"


def write_answer(store: ObjectStore, answer: Answer) -> bool:
    """Write an answer down unless it is there, or its video was forgotten. Returns: whether this call did."""
    key, tombstone = answer_key(answer.video_id, answer.answer_id), forgotten_key(answer.video_id)
    if store.exists(key) or store.exists(tombstone):
        return False
    store.put_atomic(key, answer.model_dump_json(indent=1).encode())  # equal by whoever writes it
    if store.exists(tombstone):  # either who forgets it finds what we wrote, or we find that it was forgotten
        store.delete(key)
        return False
    return True


def read_answers(store: ObjectStore, video_id: str | None = None) -> Iterator[Answer]:
    """All answers, or those on one video, by video and time.

    Raises: ReviewError for one that cannot be read.
    """
    below = "answers/" if video_id is None else f"answers/{checked_video_id(video_id)}/"
    keys: dict[str, list[str]] = {}
    for key in store.list(below):
        if (match := _KEY.fullmatch(key)) is not None:
            keys.setdefault(match["video"], []).append(key)
    with ThreadPoolExecutor(READERS, thread_name_prefix="masksieve-answers") as pool:
        for video in sorted(keys):
            found = pool.map(lambda key: _read(store, key), keys[video])
            yield from sorted(found, key=lambda one: (one.answered_at, one.answer_id))


def answered_videos(store: ObjectStore) -> dict[str, set[str]]:
    """The ids of all answers by video, from one listing."""
    found: dict[str, set[str]] = {}
    for key in store.list("answers/"):
        if (match := _KEY.fullmatch(key)) is not None:
            found.setdefault(match["video"], set()).add(match["answer"])
    return found


def _read(store: ObjectStore, key: str) -> Answer:
    try:
        return Answer.model_validate_json(store.get(key))
    except ValidationError as error:
        got = f"{store.uri(key)}: {error.error_count()} wrong fields"
        raise ReviewError("a readable answer", got, "restore the file or remove it") from error
