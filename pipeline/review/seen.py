"""What a client of the API sees: how records of the queue become JSON, and how masks come back from it."""

from __future__ import annotations

import time
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MasksieveError, PromptError
from pipeline.names import shown
from pipeline.prompt_masks import mask_from_rle, runs_of
from pipeline.render.palette import object_colour
from pipeline.review import api_models as m
from pipeline.review.refusals import Malformed
from pipeline.review.words import ask_candidates, headline, uncertainty_words
from pipeline.rle import decode

if TYPE_CHECKING:
    from pipeline.review.items import Item
    from pipeline.review.queue import Leased, Seconds, Stats
    from pipeline.review.shown import ShownMasks, ShownRow

BoolArray = NDArray[np.bool_]


def lease_out(leased: Leased, masks: ShownMasks) -> m.LeaseOut:
    """A lease, its item with the mask that is shown."""
    return m.LeaseOut(
        item=seen_item(leased.item, masks), lease_id=leased.lease_id, seconds_left=seconds_left(leased.expires_at)
    )


def seconds_left(until: float) -> float:
    """Seconds until a Unix time, at least 0."""
    return round(max(0.0, until - time.time()), 3)


def seen_item(item: Item, masks: ShownMasks | None) -> m.SeenItem:
    """An item without what would tell why it was drawn; `masks` None leaves the mask out."""
    return m.SeenItem(
        item_id=item.item_id,
        video_name=shown(PurePosixPath(item.video_uri).name),
        drop=item.drop,
        object_id=item.object_id,
        label=item.label,
        colour="#{:02x}{:02x}{:02x}".format(*object_colour(item.object_id)),
        frame_index=item.frame_index,
        first_frame=item.first_frame,
        last_frame=item.last_frame,
        rows=item.rows,
        height=item.height,
        width=item.width,
        fps=item.fps,
        headline=headline(item),
        words=uncertainty_words(item),
        ask_candidates=ask_candidates(item),
        shown_mask=None if masks is None else _shown_mask(item, masks),
    )


def _shown_mask(item: Item, masks: ShownMasks) -> m.Rle | None:
    try:
        return row_mask(masks.of(item).rows[item.frame_index], item)
    except MasksieveError:
        return None  # the strip says what is wrong


def row_mask(row: ShownRow, item: Item) -> m.Rle | None:
    """The mask of a row of an item; None where the object is untracked."""
    return None if row.counts is None else rle_out(decode(row.counts, item.height, item.width))


def rle_out(mask_hw: BoolArray) -> m.Rle:
    """A mask as run lengths."""
    height, width = mask_hw.shape
    return m.Rle(size=(height, width), counts=runs_of(mask_hw))


def mask_in(rle: m.Rle, item: Item) -> BoolArray:
    """A mask that a client sent. Raises Malformed if it is none of the item's size."""
    if rle.size != (item.height, item.width):
        got = f"{rle.size[0]} x {rle.size[1]}"
        raise Malformed(f"a mask of {item.height} x {item.width} (height, width)", got, "send it at the video's size")
    try:
        return mask_from_rle({"size": list(rle.size), "counts": rle.counts}, "the mask")
    except PromptError as error:
        raise Malformed(error.expected, error.got, error.next_step) from error


def stats_out(stats: Stats) -> m.StatsOut:
    """Figures of a queue; that masks are audited is no reason that anyone is told."""
    promise = stats.promise
    return m.StatsOut(
        waiting=m.WaitingOut(
            total=stats.waiting,
            drops=stats.waiting_by_drop,
            labels=stats.waiting_by_label,
            reasons={name: count for name, count in stats.waiting_by_reason.items() if name != "audit"},
        ),
        answered=m.AnsweredStats(
            today=stats.answered_today,
            total=stats.answered,
            mine_today=stats.mine_today,
            verdicts=stats.answered_by_verdict,
            reviewers=stats.answered_by_reviewer,
        ),
        seconds=m.SecondsStats(
            all=_seconds(stats.seconds),
            verdicts={name: one for name, s in stats.seconds_by_verdict.items() if (one := _seconds(s)) is not None},
        ),
        budget_left=stats.budget_left,
        promise=m.PromiseOut(
            judged=promise.judged,
            bad=promise.bad,
            error_rate=promise.error_rate,
            low=promise.low,
            high=promise.high,
            words=promise.words,
        ),
    )


def _seconds(seconds: Seconds | None) -> m.SecondsOut | None:
    return None if seconds is None else m.SecondsOut(median=seconds.median, mean=seconds.mean, count=seconds.count)
