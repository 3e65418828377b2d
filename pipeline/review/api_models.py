"""What goes over the review API: bodies of questions and answers, their sizes bounded, nothing unknown in them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.review.answers import Scope, Verdict

MOST_RUNS = 1_000_000
MOST_CLICKS = 1024
_SAFE = r"^[^\x00]*$"

Text = Annotated[str, Field(max_length=256, pattern=_SAFE)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
LeaseId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
FrameNumber = Annotated[int, Field(ge=0, le=2**31 - 1)]
Pixel = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Click = tuple[Pixel, Pixel, Annotated[int, Field(ge=0, le=1)]]
Side = Annotated[int, Field(ge=1, le=1 << 16)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rle(_Body):
    """A mask as COCO RLE, column by column, background first: run lengths, or COCO's compressed text."""

    size: tuple[Side, Side]
    counts: (
        Annotated[list[Annotated[int, Field(ge=0, le=1 << 31)]], Field(max_length=MOST_RUNS)]
        | Annotated[str, Field(max_length=4 * MOST_RUNS)]
    )


class Login(_Body):
    token: Annotated[str, Field(max_length=1024)]
    reviewer: Annotated[str, Field(max_length=256)]


class Me(_Body):
    reviewer: str
    undo_seconds: float
    lease_seconds: float
    max_points: int


class ClaimBody(_Body):
    count: Annotated[int, Field(ge=1, le=10)] = 1
    item_id: Hex | None = None
    drop: Text | None = None
    label: Text | None = None


class AnswerBody(_Body):
    """`mask` goes with fix, and with pick unless `candidate` names one of the three of the item's own frame."""

    answer_id: Hex
    lease_id: LeaseId
    verdict: Verdict
    scope: Scope = "stretch"
    frame_index: FrameNumber
    mask: Rle | None = None
    candidate: Annotated[int, Field(ge=0, le=2)] | None = None
    prompts: dict[str, Any] | None = None
    seconds: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] | None = None


class LeaseBody(_Body):
    lease_id: LeaseId


class SkipBody(LeaseBody):
    reason: Text | None = None


class UndoBody(_Body):
    answer_id: Hex


class SegmentBody(_Body):
    """At least a click or a box; `mask` is the one that is being corrected."""

    frame_index: FrameNumber
    points: Annotated[list[Click], Field(max_length=MOST_CLICKS)] = []
    box: tuple[Pixel, Pixel, Pixel, Pixel] | None = None
    mask: Rle | None = None


class SeenItem(_Body):
    """An item as who answers sees it; nothing in it tells why it was drawn."""

    item_id: str
    video_name: str
    drop: str
    object_id: int
    label: str | None
    colour: str
    frame_index: int
    first_frame: int
    last_frame: int
    rows: int
    height: int
    width: int
    fps: float | None
    headline: str
    words: list[str]
    ask_candidates: bool
    shown_mask: Rle | None


class LeaseOut(_Body):
    item: SeenItem
    lease_id: str
    seconds_left: float


class Claimed(_Body):
    leases: list[LeaseOut]
    waiting: int


class AnsweredOut(_Body):
    answer_id: str
    undo_seconds: float
    answered_today: int


class Renewed(_Body):
    seconds_left: float


class Nothing(_Body):
    pass


class SegmentOut(_Body):
    mask: Rle
    score: float
    ms: float


class FrameOut(_Body):
    frame_index: int
    pts_seconds: float | None
    in_stretch: bool
    mask: Rle | None
    visibility: str


class StripOut(_Body):
    """`note` says why only the stored picture can be shown, where `video` is false."""

    video: bool
    note: str | None
    frames: list[FrameOut]


class CandidateOut(_Body):
    """One of three; `shown` marks the one that comes closest to the mask that is shown."""

    mask: Rle
    score: float | None
    shown: bool


class CandidatesOut(_Body):
    frame_index: int
    candidates: list[CandidateOut]


class ChangeOut(_Body):
    cursor: int
    event: Literal["added", "withdrawn", "answered"]
    item_id: str
    item: SeenItem | None = None


class ChangesOut(_Body):
    changes: list[ChangeOut]
    cursor: int


class SecondsOut(_Body):
    median: float
    mean: float
    count: int


class WaitingOut(_Body):
    total: int
    drops: dict[str, int]
    labels: dict[str, int]
    reasons: dict[str, int]


class AnsweredStats(_Body):
    today: int
    total: int
    mine_today: int
    verdicts: dict[str, int]
    reviewers: dict[str, int]


class SecondsStats(_Body):
    all: SecondsOut | None
    verdicts: dict[str, SecondsOut]


class PromiseOut(_Body):
    judged: int
    bad: int
    error_rate: float | None
    low: float | None
    high: float | None
    words: str


class StatsOut(_Body):
    waiting: WaitingOut
    answered: AnsweredStats
    seconds: SecondsStats
    budget_left: int | None
    promise: PromiseOut


class Health(_Body):
    ok: bool


class ErrorBody(_Body):
    expected: str
    got: str
    next_step: str
    kind: str


class ErrorOut(_Body):
    """Every refusal has this form."""

    error: ErrorBody
