"""Turns propagated masks into numbers about them: USAM heads once per chunk of frames, stability, entropy."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import HeadError
from pipeline.propagate import FrameResult
from usam.entropy import logits_entropy, stability
from usam.features import TrackFeatures
from usam.heads import HeadBank
from usam.targets import STACKED, TRACKED_HEAD

SIZES = ("tiny", "small", "base_plus", "large")


def score_head(bank: HeadBank | None) -> str:
    """The column that predicts the IoU of the deployed model's masks.

    Args:    bank: its heads, or None.
    Returns: `iou_stacked` if the bank has a stacker; else `iou_tracked`; else the head of the model's own size
             (`iou_tiny` for sam2.1_hiera_tiny); else `sam_score`.
    """
    if bank is None:
        return "sam_score"
    if bank.stacker is not None:
        return STACKED
    sized = [f"iou_{size}" for size in SIZES if bank.card.model_name.endswith(size)]
    return next((name for name in (TRACKED_HEAD, *sized) if name in bank.heads), "sam_score")


@dataclass(frozen=True, slots=True)
class ScoredResult:
    """A mask and what is known about how wrong it is.

    Attributes:
        result: the mask.
        scores: every head's raw output by name, and the stacker's, whose gaps take the place of the heads'; empty
                without a bank, for a given mask and when untracked.
        predicted_iou: in [0, 1]; `1 - predicted_iou` is the uncalibrated uncertainty. None if given or untracked.
        score_source:  what `predicted_iou` is, see `score_head`. Where the model says that
                       the object is absent there is no mask to score and it is "object_score": the model's probability
                       of absence, which is the expected IoU of an empty mask (1 if the truth is empty, else 0).
        stability, entropy_bits: of the low-resolution mask; None unless it is a predicted, visible mask.
        features: `usam.features.FEATURES`, where a stacker or the tokens sidecar asks for them; None if given or
            untracked.
    """

    result: FrameResult
    scores: dict[str, float] = field(default_factory=dict)
    predicted_iou: float | None = None
    score_source: str | None = None
    stability: float | None = None
    entropy_bits: float | None = None
    features: list[float] | None = None


def bank_scores(bank: HeadBank, tokens_n2d: Tensor, features_nf: Tensor | None) -> tuple[list[str], Tensor]:
    """What a bank and its stacker say.

    Args:
        tokens_n2d: (n, 2d) float, on the bank's device.
        features_nf: (n, F) float, what the stacker reads beside the heads; not needed without one.
    Returns: names, and (names, n) float32. A name that comes twice is a gap: the stacker's, which counts, is the last.
    Raises:  ShapeError for tokens of another width.
    """
    scores_hn, names = bank.stacked(tokens_n2d), list(bank.heads)
    if bank.stacker is not None and features_nf is not None:
        heads_nh = scores_hn[[names.index(name) for name in bank.stacker.card.heads]].T
        scores_hn = torch.cat([scores_hn, bank.stacker.stacked(heads_nh, features_nf)])
        names += [STACKED if name == TRACKED_HEAD else name for name in bank.stacker.card.targets]
    return names, scores_hn


class Scorer:
    """Scores frames in order; holds at most `chunk_frames` frames back, so the heads run once and sync once per chunk.

    Args:
        bank: the heads of the model that made the masks; without one, SAM2's own score is the prediction.
        chunk_frames: frames per evaluation, at least 1.
        keep_features: results have their track's features, also where no stacker asks for them.
    Raises: HeadError for a chunk of less than one frame.
    """

    def __init__(self, bank: HeadBank | None, chunk_frames: int = 16, *, keep_features: bool = False) -> None:
        if chunk_frames < 1:
            raise HeadError("chunk_frames of at least 1", str(chunk_frames), "correct score.chunk_frames")
        self.bank, self.chunk_frames, self.source = bank, chunk_frames, score_head(bank)
        self._tracks = TrackFeatures()
        self._look_at_tracks = keep_features or (bank is not None and bank.stacker is not None)

    def turn(self) -> None:
        """The reverse pass comes next: every object goes back from its first prompt."""
        self._tracks.reverse()

    def state(self) -> dict[str, Any]:
        """Between chunks: what the scores of later frames depend on."""
        return self._tracks.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self._tracks = TrackFeatures.from_state(state)

    def score(self, frames: Iterable[list[FrameResult]]) -> Iterator[list[ScoredResult]]:
        """Score a pass.

        Args:   frames: what `Session.forward` or `Session.backward` yields.
        Yields: one list per list that came in, same order.
        """
        chunk: list[list[FrameResult]] = []
        for results in frames:
            chunk.append(results)
            if len(chunk) == self.chunk_frames:
                yield from self._score_chunk(chunk)
                chunk = []
        yield from self._score_chunk(chunk)

    def _score_chunk(self, chunk: list[list[FrameResult]]) -> Iterator[list[ScoredResult]]:
        flat = [result for results in chunk for result in results]
        features = self._track_features(chunk)
        scored = self._head_scores(flat, features)
        shapes = self._mask_numbers(flat)
        position = 0
        for results in chunk:
            yield [
                self._combine(result, scored.get(position + i, {}), shapes.get(position + i), features[position + i])
                for i, result in enumerate(results)
            ]
            position += len(results)

    def _track_features(self, chunk: list[list[FrameResult]]) -> list[list[float] | None]:
        """Of every row, with one transfer to the host; None for rows without features, or where nobody asks."""
        if not self._look_at_tracks:
            return [None for results in chunk for _ in results]
        measured = [self._tracks.measure(results) for results in chunk]
        there = [numbers for numbers in measured if numbers is not None]
        lines = iter(torch.cat(there).tolist() if there else [])
        out: list[list[float] | None] = []
        for results, numbers in zip(chunk, measured, strict=True):
            out += self._tracks.history(results, list(itertools.islice(lines, 0 if numbers is None else len(numbers))))
        return out

    def _head_scores(self, flat: list[FrameResult], features: list[list[float] | None]) -> dict[int, dict[str, float]]:
        rows = [i for i, result in enumerate(flat) if result.tokens_2d is not None]
        if self.bank is None or not rows:
            return {}
        tokens_n2d = torch.stack([t for i in rows if (t := flat[i].tokens_2d) is not None])
        if self.bank.device != tokens_n2d.device:
            self.bank.to(tokens_n2d.device)
        features_nf = None
        if self.bank.stacker is not None:
            features_nf = torch.tensor([features[i] for i in rows], device=tokens_n2d.device)
        names, scores_hn = bank_scores(self.bank, tokens_n2d, features_nf)
        return {i: dict(zip(names, row, strict=True)) for i, row in zip(rows, scores_hn.T.tolist(), strict=True)}

    @torch.inference_mode()
    def _mask_numbers(self, flat: list[FrameResult]) -> dict[int, list[float]]:
        rows: list[int] = []
        logits: list[Tensor] = []
        for i, result in enumerate(flat):
            if result.visibility == "visible" and result.sam_score is not None and result.logits_hw is not None:
                rows.append(i)
                logits.append(result.logits_hw)
        if not rows:
            return {}
        logits_nhw = torch.stack(logits)
        numbers = torch.stack([stability(logits_nhw), logits_entropy(logits_nhw)], dim=1).tolist()
        return dict(zip(rows, numbers, strict=True))

    def _combine(
        self, result: FrameResult, scores: dict[str, float], shape: list[float] | None, features: list[float] | None
    ) -> ScoredResult:
        predicted_iou, source = _prediction(result, scores, self.source)
        stable, entropy_bits = shape if shape is not None else (None, None)
        return ScoredResult(result, scores, predicted_iou, source, stable, entropy_bits, features)


def _prediction(result: FrameResult, scores: dict[str, float], source: str) -> tuple[float | None, str | None]:
    if result.sam_score is None:
        return None, None
    if result.visibility == "absent" and result.object_score is not None:
        return float(torch.sigmoid(torch.tensor(-result.object_score))), "object_score"
    if source in scores:
        return scores[source], source
    return min(max(result.sam_score, 0.0), 1.0), "sam_score"
