"""The feed: what came into a queue, left it and was answered, in an order that a reader with a cursor sees without gaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.review.items import Item

Event = Literal["added", "withdrawn", "answered"]


@dataclass(frozen=True)
class Change:
    """One change. `added` also says that an answer was taken back.

    Args:
        cursor: of this change; they rise, and numbers may be left out.
        item: of `added`, unless its video was forgotten since.
    """

    cursor: int
    event: Event
    item_id: str
    item: Item | None = None
