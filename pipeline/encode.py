"""The last stage of the job: scored masks become rows, in a thread of their own, in order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import rle
from pipeline.rowspool import PassWriter
from pipeline.score import ScoredResult
from pipeline.tokens import token_rows

WAITING_CHUNKS = 3


@dataclass(frozen=True)
class RowContext:
    """What every row of a video says alike.

    Args:
        labels: text per object id.
        height, width: of the video as presented, px.
        given: full masks that a person gave, (height, width) bool, by (object_id, frame_index).
        auto: ids of the objects that the automatic prompter found; those found on the way are added.
    """

    video_id: str
    video_uri: str
    labels: dict[int, str | None]
    height: int
    width: int
    given: dict[tuple[int, int], NDArray[np.bool_]] = field(default_factory=dict)
    auto: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class PassWriters:
    """Where one pass writes: facts, and the sidecars that were asked for."""

    masks: PassWriter
    candidates: PassWriter | None = None
    tokens: PassWriter | None = None


class EncodeStage:
    """Encodes frames behind the device stage; at most `WAITING_CHUNKS` chunks wait, so memory is bounded.

    A context manager: leaving it waits for what was submitted, and raises what went wrong. A chunk that failed fails
    every later call as well: nothing comes after rows that are missing.

    Args:
        context: of the video.
        writers: of the pass.
        chunk_frames: frames per unit of work.
    """

    def __init__(self, context: RowContext, writers: PassWriters, chunk_frames: int) -> None:
        self.context, self.writers, self.chunk_frames = context, writers, chunk_frames
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._running: deque[Future[None]] = deque()
        self._chunk: list[tuple[float, list[ScoredResult]]] = []

    def __enter__(self) -> EncodeStage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, pts_seconds: float, results: list[ScoredResult]) -> None:
        """Hand over one frame's results; blocks while too much is waiting."""
        self._chunk.append((pts_seconds, results))
        if len(self._chunk) >= self.chunk_frames:
            self._send()

    def drain(self) -> None:
        """Wait until every frame that was submitted is with its writers."""
        self._send()
        self._wait(0)

    def _send(self) -> None:
        if not self._chunk:
            return
        self._wait(WAITING_CHUNKS - 1)
        self._running.append(self._pool.submit(self._encode, self._chunk))
        self._chunk = []

    def _wait(self, waiting: int) -> None:
        """Until no more than so many chunks wait."""
        while len(self._running) > waiting:
            self._running[0].result()  # one that failed stays the first
            self._running.popleft()

    def _encode(self, chunk: list[tuple[float, list[ScoredResult]]]) -> None:
        context = self.context
        self.writers.masks.append([mask_row(context, pts, one) for pts, results in chunk for one in results])
        if self.writers.candidates is not None:
            rows = [row for _, results in chunk for one in results for row in candidate_rows(context, one)]
            self.writers.candidates.append(rows)
        if self.writers.tokens is not None:
            rows = [row for _, results in chunk for one in results for row in token_rows(context.video_id, one)]
            self.writers.tokens.append(rows)


def mask_row(context: RowContext, pts_seconds: float, scored: ScoredResult) -> dict[str, Any]:
    """One row of facts, as `records.MASKS` (columns about other frames are filled at the merge)."""
    result = scored.result
    encoded = None
    if result.prompted == "mask":  # the truth itself, not the model's small copy of it
        encoded = rle.encode_mask(context.given[result.object_id, result.frame_index])
    elif result.visibility == "absent":
        encoded = rle.empty_mask(context.height, context.width)
    elif result.logits_hw is not None:
        encoded = rle.encode_logits(result.logits_hw.float().cpu().numpy(), context.height, context.width)
    # a mask without a pixel shows nothing, whatever the presence score says: the object is absent
    visibility: str = result.visibility
    if encoded is not None and result.visibility != "untracked":
        visibility = "visible" if encoded.area_px else "absent"
    hollow = visibility == "absent" and result.visibility == "visible"
    return {
        "video_id": context.video_id,
        "video_uri": context.video_uri,
        "frame_index": result.frame_index,
        "pts_seconds": pts_seconds,
        "object_id": result.object_id,
        "label": context.labels.get(result.object_id),
        "height": context.height,
        "width": context.width,
        "rle": None if encoded is None else encoded.counts,
        "area_px": None if encoded is None else encoded.area_px,
        "bbox_xyxy": None if encoded is None else encoded.bbox_xyxy,
        "visibility": visibility,
        "prompted": result.prompted,
        "prompt_xyxy": result.prompt_xyxy,
        "auto": result.object_id in context.auto,
        "direction": result.direction,
        "sam_score": result.sam_score,
        "object_score": result.object_score,
        "stability": None if hollow else scored.stability,
        "entropy_bits": None if hollow else scored.entropy_bits,
        "shot_index": 0,
        "across_cut": False,
        "score_source": scored.score_source,
        **scored.scores,
    }


def candidate_rows(context: RowContext, scored: ScoredResult) -> list[dict[str, Any]]:
    """Rows of the candidates sidecar: the three low-resolution masks of one decoded frame."""
    result = scored.result
    if result.candidates_3hw is None or result.candidate_scores_3 is None:
        return []
    logits, scores = result.candidates_3hw.float().cpu().numpy(), result.candidate_scores_3.tolist()
    return [
        {
            "video_id": context.video_id,
            "frame_index": result.frame_index,
            "object_id": result.object_id,
            "candidate_index": index,
            "height": logits.shape[1],
            "width": logits.shape[2],
            "rle": rle.encode_mask(logits[index] > 0).counts,
            "sam_score": scores[index],
            "chosen": result.chosen == index + 1,
        }
        for index in range(3)
    ]
