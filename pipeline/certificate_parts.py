"""The parts of a certificate: its promise, groups, what made the facts, the truth they met, and the review load."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from usam.isotonic import Isotonic

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ErrorRate(Part):
    """Promise: at most a share `at_most` of what is accepted has an IoU with the truth below `bad_iou`."""

    kind: Literal["error_rate"] = "error_rate"
    bad_iou: Annotated[float, Field(gt=0, le=1)]
    at_most: Annotated[float, Field(gt=0, lt=1)]

    def __str__(self) -> str:
        return f"at most {100 * self.at_most:g}% of accepted masks below IoU {self.bad_iou:g}"


class MeanIou(Part):
    """Promise: the mean IoU with the truth of what is accepted is at least `at_least`."""

    kind: Literal["mean_iou"] = "mean_iou"
    at_least: Annotated[float, Field(gt=0, lt=1)]

    def __str__(self) -> str:
        return f"mean IoU of accepted masks at least {self.at_least:g}"


class Match(Part):
    """Which rows a group has; None is any. The first group that matches counts."""

    source: str | None = None
    label: str | None = None
    model: str | None = None

    @property
    def anything(self) -> bool:
        """Whether every row matches."""
        return self.source is None and self.label is None and self.model is None

    def takes(self, *, source: str | None, label: str | None, model: str | None) -> bool:
        """Whether rows of this source, label and model match."""
        return self.source in (None, source) and self.label in (None, label) and self.model in (None, model)

    def __str__(self) -> str:
        named = [f"{name} {value}" for name, value in self if value is not None]
        return ", ".join(named) or "all"


class Group(Part):
    """What was certified of one group.

    Args:
        match: its rows.
        threshold: highest uncertainty (with the auto margin) that may be accepted; None: nothing may.
        passed: every threshold of the walk that passed, rising; each of them is certified.
        videos, rows: certifying videos, and their rows that were candidates for acceptance.
        proven: the largest threshold that the test certifies which is proven for every distribution of videos; it takes
            more of them than the bound that is measured to hold. None: no threshold.
        observed: risk among the accepted rows at the threshold; None without a threshold.
        bound: upper confidence bound of that risk; None without a threshold.
        coverage: share of the rows that is accepted at the threshold.
        absent_share: share of the rows that the model calls absent.
        oracle_coverage: coverage of the largest threshold whose observed risk on these rows keeps the promise.
        level: probability with which this group's promise may fail, its share of 1 - confidence.
        needs_videos: about how many certifying videos it would take; None where it is certified or nobody can tell.
    """

    match: Match
    threshold: Share | None
    passed: tuple[Share, ...]
    proven: Share | None = None
    videos: Count
    rows: Count
    observed: Share | None
    bound: Share | None
    coverage: Share
    absent_share: Share | None = None
    oracle_coverage: Share | None = None
    level: Annotated[float, Field(gt=0, lt=1)]
    needs_videos: Count | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.passed) != sorted(set(self.passed)):
            raise ValueError("passed thresholds rise")
        if self.threshold is not None and self.threshold not in self.passed:
            raise ValueError("the threshold is one that passed")
        return self


class ModelMark(Part):
    """A model by name and checksum."""

    name: str
    sha256: str


class Process(Part):
    """What made the facts: another model, other heads or settings make other scores.

    Args:
        model: whose masks.
        heads_sha256: of the uncertainty heads; None without any.
        config: the settings that changed facts, as their metadata say, without sidecars.
        decoders: which decoders read the videos; each file names its own.
    """

    model: ModelMark
    heads_sha256: str | None
    config: dict[str, Any]
    decoders: tuple[str, ...] = ()


def truth_mark(video_id: str) -> str:
    """What `Truth.marks` has of a labelled video: too little to tell which it was, enough to know it again."""
    return hashlib.sha256(f"certificate:{video_id}".encode()).hexdigest()[:12]


class Truth(Part):
    """What the masks were held against.

    Args:
        kind: its format.
        sha256: of all that it says about the rows that were used.
        videos, rows: how many it speaks of, mapping and certifying ones together.
        attempts: earlier certificates of this output that saw this truth or some of its videos.
        marks: `truth_mark` of each video, so that a later attempt on the same videos is seen.
    """

    kind: str
    sha256: str
    videos: Count
    rows: Count
    attempts: Count
    marks: tuple[str, ...] = Field(default=(), repr=False)


class IouMap(Part):
    """The rising map from predicted IoU (1 - uncertainty) to IoU, fitted on `videos` that certify nothing."""

    score: tuple[float, ...]
    value: tuple[float, ...]
    videos: Count

    def isotonic(self) -> Isotonic:
        """As a function of scores."""
        return Isotonic(np.asarray(self.score, np.float64), np.asarray(self.value, np.float64))


class ReviewLoad(Part):
    """What people would have to look at each day at the certified thresholds, and what they can."""

    rows_per_day: Annotated[float, Field(ge=0)] | None
    stretches_per_day: Annotated[float, Field(ge=0)] | None
    budget_per_day: Annotated[float, Field(ge=0)] | None = None
    budget_unit: Literal["rows", "stretches"] = "stretches"
