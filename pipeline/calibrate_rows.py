"""Judged rows as columns: scores under a policy's rules, the truth of each, which videos map and which certify."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.certificate import difference, process_of
from pipeline.certificate_parts import Match, Process, truth_mark
from pipeline.columns import Floats, Mask, codes, equals
from pipeline.errors import MasksieveError
from pipeline.policy import Policy
from pipeline.rules import Examined
from pipeline.truth import VideoTruth

Ints = NDArray[np.int64]


class CalibrationError(MasksieveError):
    """Truth, scores or a policy that no threshold can be certified from."""


@dataclass(frozen=True, eq=False)
class JudgedRows:
    """Predictions with truth, of many videos.

    Attributes:
        video_ids, sources, models: by video.
        labels: by number.
        video_n, label_n: (n,) numbers of each row.
        score_n: (n,) what meets the threshold: -inf where the row is accepted at any, NaN where at none.
        uncertainty_n: (n,) 1 - predicted IoU, NaN without a score.
        absent_n: (n,) whether the model calls the object absent.
        iou_n: (n,) of `VideoTruth`. weight_n: (n,) so many rows of the output each stands for.
        processes: what made the facts, one per model.
        sha256: of what the truth says of these rows.
    """

    video_ids: list[str]
    sources: list[str]
    models: list[str]
    labels: list[str | None]
    video_n: Ints
    label_n: Ints
    score_n: Floats
    uncertainty_n: Floats
    absent_n: Mask
    iou_n: Floats
    weight_n: Floats
    processes: tuple[Process, ...]
    sha256: str

    def matching(self, match: Match) -> Mask:
        """The rows of a group."""
        videos = [
            match.source in (None, source) and match.model in (None, model)
            for source, model in zip(self.sources, self.models, strict=True)
        ]
        labels = [match.label in (None, label) for label in self.labels]
        mask: Mask = np.array(videos, bool)[self.video_n] & np.array(labels, bool)[self.label_n]
        return mask

    def mapping(self, share: float) -> Mask:
        """The rows of videos that fit the map from scores to IoU and certify nothing, drawn by a hash of their ids."""
        drawn = [
            int(hashlib.sha256(f"map:{one}".encode()).hexdigest()[:8], 16) < share * 2**32 for one in self.video_ids
        ]
        mask: Mask = np.array(drawn, bool)[self.video_n]
        return mask

    def marks(self) -> tuple[str, ...]:
        """`truth_mark` of each video, sorted."""
        return tuple(sorted(truth_mark(one) for one in self.video_ids))


def collect(
    videos: Iterable[VideoTruth],
    policy: Policy,
    by: tuple[str, ...],
    progress: Callable[[int], None],
    *,
    audited: bool = False,
) -> JudgedRows:
    """The predictions among judged rows; full-mask prompts are no predictions and are left out.

    Args:    policy: its rules; thresholds do not matter.
             audited: the weights tell how likely rows were to be judged. Else those of a video stand for all of it: a
                 few frames of each would make short videos count for as much as long ones.
             by: what groups are made of: source, label, model.
             progress: called with the videos so far.
    Raises:  CalibrationError for scores that are no numbers, or facts of several models, heads or settings that `by`
             does not keep apart.
    """
    ids: list[str] = []
    about: list[tuple[str, str]] = []
    labels: dict[str | None, int] = {}
    processes: list[tuple[Process, str]] = []
    parts: list[tuple[NDArray[Any], ...]] = []
    digests: list[bytes] = []
    for video in videos:
        name = f"{video.commit.video_uri.rpartition('/')[2]} ({video.commit.video_id[:12]})"
        process = _merged(processes, video, name, by)
        source, model = video.commit.first_seen, process.model.name
        seen = Examined(video.facts, policy, source, model)
        _refuse_nan(seen, video, name)
        ruled = seen.ruled()
        keep_n = ruled.predicted_n
        if not keep_n.any():
            continue
        score_n = np.where(ruled.always_n, -np.inf, np.where(ruled.passes_n, ruled.compared_n, np.nan))
        label_n, texts = codes(video.facts, "label")
        numbers = np.array([labels.setdefault(text, len(labels)) for text in texts])
        columns = (
            np.full(len(keep_n), len(ids)), numbers[label_n], score_n, seen.uncertainty_n,
            equals(video.facts, "visibility", "absent"), video.iou_n,
            video.weight_n if audited else video.weight_n * (video.predicted / keep_n.sum()),
        )  # fmt: skip
        parts.append(tuple(column[keep_n] for column in columns))
        ids.append(video.commit.video_id)
        about.append((source, model))
        digests.append(video.digest())
        progress(len(ids))
    if not ids:
        got = "truth of frames that were prompted by a whole mask alone"
        raise CalibrationError("truth of predicted masks", got, "give truth of frames that the model tracked")
    video_n, label_n, score_n, uncertainty_n, absent_n, iou_n, weight_n = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return JudgedRows(
        ids, [one[0] for one in about], [one[1] for one in about], list(labels),
        video_n, label_n, score_n, uncertainty_n, absent_n, iou_n, weight_n,
        processes=tuple(one for one, _ in processes), sha256=hashlib.sha256(b"".join(sorted(digests))).hexdigest(),
    )  # fmt: skip


def group_matches(rows: JudgedRows, by: tuple[str, ...], min_videos: int) -> list[Match]:
    """The groups of rows that have enough certifying videos; what is left belongs to none of them.

    Args: by: source, label, model. min_videos: fewer are left for the pooled group.
    """
    found: dict[tuple[tuple[str, str], ...], set[int]] = {}
    values = {"source": rows.sources, "model": rows.models}
    for video, label in sorted(set(zip(rows.video_n.tolist(), rows.label_n.tolist(), strict=True))):
        named = [(name, rows.labels[label] if name == "label" else values[name][video]) for name in by]
        key = tuple((name, value) for name, value in named if value is not None)
        if len(key) == len(by):
            found.setdefault(key, set()).add(video)
    return [Match(**dict(key)) for key, videos in sorted(found.items()) if len(videos) >= min_videos]


def subset(rows: JudgedRows, mask_n: Mask) -> JudgedRows:
    """Some of the rows, with the videos and labels of all."""
    columns = ("video_n", "label_n", "score_n", "uncertainty_n", "absent_n", "iou_n", "weight_n")
    return replace(rows, **{name: getattr(rows, name)[mask_n] for name in columns})


def _merged(processes: list[tuple[Process, str]], video: VideoTruth, name: str, by: tuple[str, ...]) -> Process:
    """The process of a video, noted among those seen before."""
    process = process_of(video.metadata)
    if process is None:
        raise CalibrationError(f"facts of {name} that say what made them", "none", "label the video again")
    for place, (other, first) in enumerate(processes):
        if other.model.name != process.model.name:
            if "model" not in by:
                got = f"{other.model.name} for {first}, {process.model.name} for {name}"
                raise CalibrationError("masks of one model", got, "add --by model, or name the videos by --drop")
            continue
        decoders = tuple(sorted({*other.decoders, *process.decoders}))
        widened = other.model_copy(update={"decoders": decoders})
        if (unlike := difference(process, [widened])) is not None:
            step = "label or rescore the older ones again, or name the others by --drop"
            raise CalibrationError(f"facts that were made like those of {first}", f"{unlike} for {name}", step)
        processes[place] = widened, first
        return process
    processes.append((process, name))
    return process


def _refuse_nan(seen: Examined, video: VideoTruth, name: str) -> None:
    """A missing score is fine, such rows are reviewed; one that is no number is damage."""
    scored_n = seen.predicted_n & video.facts.column("score_source").is_valid().to_numpy()
    broken = int((scored_n & ~np.isfinite(seen.uncertainty_n)).sum())
    if broken:
        got = f"NaN or nothing in {broken} of {int(scored_n.sum())} rows of {name}"
        raise CalibrationError("scores that are numbers", got, "label or rescore the video again")
