"""One clip of the labelled drop with an output of its own, that tests answer about and correct."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.label import label_video
from pipeline.ledger import Ledger
from pipeline.models import LoadedModel
from pipeline.review.answers import Answer
from pipeline.review.corrections import Corrected, apply_answers
from pipeline.settings import Settings, load_settings
from pipeline.storage.objects import ObjectStore

from .answering import Row, Truth, answer, labels, true_mask

POLICY = {"policy.max_uncertainty": 0.2, "policy.audit_rate": 0.4}


@dataclass
class Clip:
    """One clip of the drop with an output of its own."""

    video: Path
    out: Path
    truth: Truth
    settings: Settings
    nano: LoadedModel
    video_id: str = ""

    def __post_init__(self) -> None:
        self.store = ObjectStore(self.out)
        self.ledger = Ledger(self.store)

    def label(self, **overrides: Any) -> str:
        settings = load_settings(None, {**POLICY, "output.tokens": True, "output.candidates": True, **overrides})
        prompts = None if settings.prompts.on_missing == "auto" else self.video.with_suffix(".prompts.json")
        report = label_video(str(self.video), prompts, str(self.out), settings, drop="day", model=self.nano)
        self.video_id = report.video_id
        return report.status

    def apply(self, **more: Any) -> Corrected:
        return apply_answers(self.video_id, self.store, self.ledger, self.settings, model=self.nano, **more)

    def rows(self, layer: str = "labels") -> dict[tuple[int, int], Row]:
        return labels(self.out, self.video_id, layer)

    def fix(self, frame: int, object_id: int, **more: Any) -> Answer:
        row = self.rows()[frame, object_id]
        return answer(row, "fix", true_mask(row, self.truth), **more)
