"""Items: what a person is asked about, one stretch of flagged rows or one audited row each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Item:
    """One thing to look at. Two items with the same item_id show the same.

    Args:
        review_id: of the review list; the same stretch has it again after it was labelled anew.
        video_id, video_uri, generation, drop, object_id, label: whose mask.
        kind: review, or audit for one accepted row that was drawn; never shown to who answers.
        frame_index: the representative frame; first_frame, last_frame: of the stretch; rows: its frames.
        height, width, fps: of the video.
        area_px, uncertainty, reasons, suggested_action, review_probability: of the row at the representative frame.
        sources: scores of that row by column name that say where the uncertainty comes from (gaps, sam_score,
            object_score, stability, temporal_iou, area_change, visibility); None where there is none.
        gain: uncertainty summed over the rows of the stretch; an unscored row counts as 1.
        frame_uri, overlay_uri: pictures of the representative frame, where they were made.
    """

    review_id: str
    video_id: str
    video_uri: str
    generation: int
    drop: str
    object_id: int
    label: str | None
    kind: Literal["review", "audit"]
    frame_index: int
    first_frame: int
    last_frame: int
    rows: int
    height: int
    width: int
    fps: float | None
    area_px: int | None
    uncertainty: float | None
    reasons: tuple[str, ...]
    suggested_action: str | None
    review_probability: float
    sources: dict[str, float | str | None] = field(default_factory=dict)
    gain: float = 0.0
    frame_uri: str | None = None
    overlay_uri: str | None = None

    @property
    def item_id(self) -> str:
        """Made from what is shown: when the stretch or its masks change, another item takes its place."""
        parts = (self.review_id, self.generation, self.frame_index, self.last_frame, self.rows)
        return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:20]


def about(item: Item) -> dict[str, object]:
    """The fields of an `Answer` that tell what was shown, as they have to be of this item."""
    return {
        "item_id": item.item_id, "review_id": item.review_id, "video_id": item.video_id,
        "generation": item.generation, "object_id": item.object_id, "label": item.label,
        "first_frame": item.first_frame, "last_frame": item.last_frame, "rows": item.rows,
        "audit": item.kind == "audit", "review_probability": item.review_probability,
        "uncertainty": item.uncertainty, "reasons": item.reasons,
    }  # fmt: skip
