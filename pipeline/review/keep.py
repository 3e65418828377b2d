"""Keeps answers, each exactly once, and takes them back while nothing rests on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from pipeline.errors import PromptError
from pipeline.prompt_masks import mask_from_rle
from pipeline.review import feed
from pipeline.review.answers import Answer
from pipeline.review.items import Item, about
from pipeline.review.leases import FREE, Leased, Leases, refuse_lost, refuse_settled
from pipeline.review.queue_tables import answers, insert_new, is_item, item_of, items, lists
from pipeline.review.refusals import Conflict, Malformed, NotFound
from pipeline.review.stats import day_of

BAD_IOU = 0.5
"""An audited mask is bad if a person's has less IoU with it."""
_WHAT_WAS_SAID = {"item_id", "reviewer", "verdict", "scope", "frame_index", "mask", "candidate", "prompts", "seconds"}
_CHANGES = ("generation", "uncertainty", "reasons")
"""What becomes another of an item while it shows the same: others of the video's masks were corrected, or rescored."""


@dataclass(frozen=True)
class Answered:
    """An answer that is kept, whatever happens now.

    Args:
        again: it had been given before, with the same content; nothing changed.
        undo_until: Unix time in s until which `undo` is sure to work.
        answered_today: by this reviewer, this answer included.
    """

    answer_id: str
    again: bool
    undo_until: float
    answered_today: int


def keep(
    connection: sa.Connection, leases: Leases, lease_id: str, answer: Answer, now: float, undo_seconds: float
) -> Answered:
    """Keep an answer to the item that the lease holds; see `Queue.answer`."""
    row = leases.row(connection, answer.item_id, locked=True)
    item = item_of(row.body)
    earlier = connection.execute(answers.select().where(*_is(leases, answer.answer_id))).one_or_none()
    if earlier is not None:
        _refuse_other(earlier, answer)
        return _answered(connection, leases, answer, True, earlier.kept_at + undo_seconds, now)
    refuse_settled(row)
    refuse_lost(row, lease_id, now)
    _refuse_unfit(row, item, answer)
    kept = {
        "store": leases.store, "answer_id": answer.answer_id, "item_id": answer.item_id, "video_id": answer.video_id,
        "reviewer": answer.reviewer, "verdict": answer.verdict, "seconds": answer.seconds, "audit": answer.audit,
        "bad": _bad(item, answer), "day": day_of(now), "kept_at": now, "state": "kept",
        "body": answer.model_dump_json(),
    }  # fmt: skip
    if not insert_new(connection, answers, kept):
        raise _other_content(answer.answer_id)
    connection.execute(items.update().where(is_item(leases.store, answer.item_id)).values(state="answered", **FREE))
    feed.note(connection, leases.store, [("answered", answer.item_id)])
    return _answered(connection, leases, answer, False, now + undo_seconds, now)


def take_back(connection: sa.Connection, leases: Leases, answer_id: str, reviewer: str, now: float) -> Leased:
    """Take an answer back; see `Queue.undo`."""
    query = answers.select().where(*_is(leases, answer_id)).with_for_update()
    found = connection.execute(query).one_or_none()
    if found is None or found.reviewer != reviewer:
        raise NotFound("an answer of this reviewer", repr(answer_id[:64]), "undo one that was given here")
    if found.state in ("sealed", "exported"):
        step = "answer the item that comes of it, if one does"
        raise Conflict("an answer that is not written out yet", f"{answer_id} is in the output", step)
    row = leases.row(connection, found.item_id, locked=True)
    if found.state == "undone":
        if row.state == "leased" and row.reviewer == reviewer and row.expires_at > now:
            return Leased(item_of(row.body), row.lease_id, row.expires_at)
        raise Conflict("an answer that counts", f"{answer_id} was taken back before", "claim the next item")
    connection.execute(answers.update().where(*_is(leases, answer_id)).values(state="undone"))
    # Read its list again at the next sync: while it was answered, nobody minded whether the item still is in it.
    of_video = (lists.c.store == leases.store) & (lists.c.video_id == found.video_id)
    connection.execute(lists.update().where(of_video).values(tag=""))
    leased = leases.lease(connection, row, reviewer, now)
    feed.note(connection, leases.store, [("added", found.item_id)])
    return leased


def _is(leases: Leases, answer_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return answers.c.store == leases.store, answers.c.answer_id == answer_id


def _answered(
    connection: sa.Connection, leases: Leases, answer: Answer, again: bool, undo_until: float, now: float
) -> Answered:
    today = sa.select(sa.func.count()).select_from(answers).where(
        answers.c.store == leases.store, answers.c.day == day_of(now), answers.c.reviewer == answer.reviewer,
        answers.c.state != "undone",
    )  # fmt: skip
    return Answered(answer.answer_id, again, undo_until, connection.execute(today).scalar_one())


def _refuse_other(earlier: sa.Row[Any], answer: Answer) -> None:
    """The same has to be said under this id as before; when it came, and what else is known of the item, may differ."""
    if earlier.state == "undone":
        raise Conflict("an answer that counts", f"{answer.answer_id} was taken back", "answer again under a new id")
    before = Answer.model_validate_json(earlier.body)
    if before.model_dump(include=_WHAT_WAS_SAID) != answer.model_dump(include=_WHAT_WAS_SAID):
        raise _other_content(answer.answer_id)


def _other_content(answer_id: str) -> Conflict:
    return Conflict("a new id for another answer", f"{answer_id}, under which another one is kept", "make a new id")


def _refuse_unfit(row: sa.Row[Any], item: Item, answer: Answer) -> None:
    """Raise Malformed for an answer that cannot be one to its item."""
    if answer.reviewer != row.reviewer:
        raise Malformed("an answer of who holds the lease", f"one of {answer.reviewer[:40]!r}", "log in as one person")
    if answer.generation > item.generation:
        expected = f"a generation of at most {item.generation} in an answer to {item.item_id}"
        raise Malformed(expected, str(answer.generation), "answer what was shown")
    for name, value in about(item).items():
        if name not in _CHANGES and (got := getattr(answer, name)) != value:
            expected = f"{name} {value!r} in an answer to {item.item_id}"
            raise Malformed(expected, repr(got)[:80], "answer what was shown")
    if answer.mask is None:
        return
    size = (answer.mask.height, answer.mask.width)
    if size != (item.height, item.width):
        expected, got = f"a mask of {item.height} x {item.width} pixels", f"{size[0]} x {size[1]}"
        raise Malformed(expected, got, "give it at the size of the video")
    try:
        mask_from_rle({"size": list(size), "counts": answer.mask.counts}, "the answer")
    except PromptError as error:
        raise Malformed(error.expected, error.got, error.next_step) from error


def _bad(item: Item, answer: Answer) -> bool:
    """Whether the mask that was shown is bad, by the answer."""
    if answer.verdict == "absent":
        return item.area_px is None or item.area_px > 0
    if answer.verdict in ("pick", "fix"):
        return answer.iou is None or answer.iou < BAD_IOU
    return answer.verdict == "reject"
