"""What a mask's own track says of it: how it moved, how it looks beside its prompt, how sure SAM2 has been since."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from usam.entropy import logits_entropy, stability

# From the low-resolution masks of one frame and of the row before, in the direction of the pass.
_MASK = ("entropy_bits", "stability", "area_share", "temporal_iou", "area_change", "overlap_other")
_TOKEN = ("token_cosine_prompt", "token_cosine_previous")
# Since the object's latest prompt in the direction of the pass.
_HISTORY = (
    "frames_since_prompt",
    "prompt_score",
    "area_since_prompt",
    "min_temporal_iou",
    "mean_temporal_iou",
    "min_sam_score",
    "mean_sam_score",
    "absent_share",
)
FEATURES = ("sam_score", "object_score", *_MASK, *_TOKEN, *_HISTORY)
_RECENT = 0.8  # weight of the past in running means


class TrackRow(Protocol):
    """One object on one frame; `pipeline.results.FrameResult` is one."""

    @property
    def frame_index(self) -> int: ...
    @property
    def object_id(self) -> int: ...
    @property
    def prompted(self) -> str | None: ...
    @property
    def logits_hw(self) -> Tensor | None: ...
    @property
    def object_score(self) -> float | None: ...
    @property
    def sam_score(self) -> float | None: ...
    @property
    def tokens_2d(self) -> Tensor | None: ...


class _Look(NamedTuple):
    """An object's latest mask and token, and the token of its prompt."""

    mask_m: Tensor
    token_d: Tensor | None
    prompt_token_d: Tensor | None


@dataclass(frozen=True)
class _Past:
    """An object's history since its prompt."""

    frames: int = 0
    absent: int = 0
    prompt_score: float = 1.0
    prompt_area: float = 0.0
    min_temporal_iou: float = 1.0
    mean_temporal_iou: float = 1.0
    min_sam_score: float = 1.0
    mean_sam_score: float = 1.0


class TrackFeatures:
    """Features of propagated rows, frame by frame in the direction of the pass.

    A row's features depend on its own frame and on the rows of its object before it, never on later ones. A given mask
    starts a history and has no features; an untracked row ends one. `measure` stays on the device, so that a caller can
    bring the numbers of many frames to the host at once before `history`.
    """

    def __init__(self) -> None:
        self._looks: dict[int, _Look] = {}
        self._pasts: dict[int, _Past] = {}
        self._first: dict[int, tuple[_Look, _Past | None]] = {}

    def __call__(self, rows: Sequence[TrackRow]) -> list[list[float] | None]:
        """The values of `FEATURES` for the rows of one frame; None for a row that SAM2 did not score."""
        numbers = self.measure(rows)
        return self.history(rows, [] if numbers is None else numbers.tolist())

    def reverse(self) -> None:
        """Start the reverse pass: every object goes back from its first prompt."""
        self._looks = {object_id: look for object_id, (look, _) in self._first.items()}
        self._pasts = {object_id: past for object_id, (_, past) in self._first.items() if past is not None}

    @torch.inference_mode()
    def measure(self, rows: Sequence[TrackRow]) -> Tensor | None:
        """Mask and token features of one frame.

        Args:    rows: the frame's objects.
        Returns: (m, 8) float32 on the masks' device, a line for each row that has a mask; None if none has.
        """
        for row in rows:
            if row.logits_hw is None:
                self._looks.pop(row.object_id, None)
        there = [(row, row.logits_hw) for row in rows if row.logits_hw is not None]
        if not there:
            return None
        logits_nhw = torch.stack([logits for _, logits in there]).float()
        masks_nm = (logits_nhw > 0).flatten(1)
        looks = []
        for n, (row, _) in enumerate(there):
            own = None if row.tokens_2d is None else row.tokens_2d[row.tokens_2d.shape[0] // 2 :].float()
            before = None if row.prompted else self._looks.get(row.object_id)
            if before is not None and before.mask_m.device != masks_nm.device:  # from a checkpoint
                token, prompt = (None if part is None else part.to(masks_nm.device) for part in before[1:])
                before = _Look(before.mask_m.to(masks_nm.device), token, prompt)
            look = _Look(masks_nm[n], own, own if before is None else before.prompt_token_d)
            if look.prompt_token_d is None:  # a given mask has no token: the first tracked one stands for it
                look = look._replace(prompt_token_d=own)
            looks.append((look, look if before is None else before))
        previous_nm = torch.stack([before.mask_m for _, before in looks])
        area_n, previous_n = masks_nm.sum(1).float(), previous_nm.sum(1).float()
        shared_n = (masks_nm & previous_nm).sum(1).float()
        union_n, larger_n = area_n + previous_n - shared_n, torch.maximum(area_n, previous_n)
        there_n = area_n > 0
        numbers = [
            torch.where(there_n, logits_entropy(logits_nhw), 0.0),
            torch.where(there_n, stability(logits_nhw), 0.0),
            area_n / masks_nm.shape[1],
            torch.where(union_n > 0, shared_n / union_n.clamp_min(1), 1.0),
            (area_n - previous_n) / larger_n.clamp_min(1),
            _overlap(masks_nm, area_n),
            _cosine([(look.token_d, look.prompt_token_d) for look, _ in looks], area_n),
            _cosine([(look.token_d, before.token_d) for look, before in looks], area_n),
        ]
        for (row, _), (look, _) in zip(there, looks, strict=True):
            self._looks[row.object_id] = look
            if row.prompted and row.object_id not in self._first:
                self._first[row.object_id] = (look, None)
        return torch.stack(numbers, dim=1)

    def history(self, rows: Sequence[TrackRow], numbers: Sequence[Sequence[float]]) -> list[list[float] | None]:
        """All features of one frame's rows; call it once per frame, in order.

        Args:    rows: as `measure` got them. numbers: what it gave, on the host.
        Returns: per row the values of `FEATURES`, None where SAM2 gave no score (a given mask, an untracked row).
        """
        lines, out = iter(numbers), list[list[float] | None]()
        for row in rows:
            if row.logits_hw is None:
                self._pasts.pop(row.object_id, None)
                out.append(None)
                continue
            line = dict(zip((*_MASK, *_TOKEN), next(lines), strict=True))
            past = self._pasts.get(row.object_id)
            if row.prompted or past is None:
                score = 1.0 if row.sam_score is None else row.sam_score
                past = _Past(0, 0, score, line["area_share"], 1.0, 1.0, score, score)
            else:
                past = _after(past, line, row)
            self._pasts[row.object_id] = past
            look, first_past = self._first.get(row.object_id, (None, None))
            if look is not None and first_past is None and row.prompted:
                self._first[row.object_id] = (look, past)
            out.append(None if row.sam_score is None else _values(row, line, past))
        return out

    def state(self) -> dict[str, Any]:
        """Everything that later rows depend on, as tensors and numbers that `torch.save` writes."""
        return {
            "looks": {o: list(look) for o, look in self._looks.items()},
            "pasts": {o: _plain(past) for o, past in self._pasts.items()},
            "first": {o: [list(look), _plain(past)] for o, (look, past) in self._first.items()},
        }

    @staticmethod
    def from_state(state: dict[str, Any]) -> TrackFeatures:
        """Goes on where `state` was taken."""
        features = TrackFeatures()
        features._looks = {o: _Look(*look) for o, look in state["looks"].items()}
        features._pasts = {o: _Past(*past) for o, past in state["pasts"].items()}
        features._first = {
            o: (_Look(*look), None if past is None else _Past(*past)) for o, (look, past) in state["first"].items()
        }
        return features


def _plain(past: _Past | None) -> list[float] | None:
    return None if past is None else [getattr(past, name) for name in _Past.__dataclass_fields__]


def _after(past: _Past, line: dict[str, float], row: TrackRow) -> _Past:
    score = past.mean_sam_score if row.sam_score is None else row.sam_score
    iou = line["temporal_iou"]
    return replace(
        past,
        frames=past.frames + 1,
        absent=past.absent + (line["area_share"] == 0),
        min_temporal_iou=min(past.min_temporal_iou, iou),
        mean_temporal_iou=_RECENT * past.mean_temporal_iou + (1 - _RECENT) * iou,
        min_sam_score=min(past.min_sam_score, score),
        mean_sam_score=_RECENT * past.mean_sam_score + (1 - _RECENT) * score,
    )


def _values(row: TrackRow, line: dict[str, float], past: _Past) -> list[float]:
    ratio = math.log((line["area_share"] + 1e-4) / (past.prompt_area + 1e-4))
    return [
        row.sam_score or 0.0,
        row.object_score or 0.0,
        *(line[name] for name in (*_MASK, *_TOKEN)),
        math.log1p(past.frames),
        past.prompt_score,
        ratio,
        past.min_temporal_iou,
        past.mean_temporal_iou,
        past.min_sam_score,
        past.mean_sam_score,
        past.absent / max(1, past.frames),
    ]


def _overlap(masks_nm: Tensor, area_n: Tensor) -> Tensor:
    """Largest share of each mask that another object of the frame covers too."""
    if len(masks_nm) == 1:
        return torch.zeros_like(area_n)
    masks = masks_nm.float()
    shared_nn = (masks @ masks.T) / area_n.clamp_min(1)[:, None]
    return shared_nn.fill_diagonal_(0).amax(1)


def _cosine(pairs: Sequence[tuple[Tensor | None, Tensor | None]], like_n: Tensor) -> Tensor:
    """Cosine of each pair, 1 where there is none."""
    some_d = next((a for pair in pairs for a in pair if a is not None), like_n.new_ones(1))
    full = [(some_d, some_d) if a is None or b is None else (a, b) for a, b in pairs]
    return functional.cosine_similarity(torch.stack([a for a, _ in full]), torch.stack([b for _, b in full]))
