"""Harvests propagated frames: tokens, track features, and the IoU of what other sizes, prompts and views would give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.errors import HeadError
from pipeline.models import LoadedModel
from pipeline.prompts import FramePrompt, ObjectPrompts, PromptSet
from pipeline.propagate import FrameResult, Session
from usam.datasets.samples import DataSet, Frame, Video
from usam.entropy import mask_weighted_entropy, probabilities, score_weights
from usam.features import FEATURES, TrackFeatures
from usam.harvest_frames import Progress
from usam.image import upsampled_iou, upsampled_mask
from usam.perturb import PERTURBATIONS, perturb
from usam.prompts import dense_points
from usam.scorers import resampled
from usam.shard import ENTROPIES, Plan, Shard, ShardWriter

# Object ids within a session: target * _RUNS + run. Run 0 is the centre click, 1 the dense prompt, 2.. further clicks.
_RUNS = 16
_DENSE, _CLICKS = 1, 8


@dataclass(frozen=True)
class Protocol:
    """What is prompted, and what is run besides the deployed model's own masks.

    Attributes:
        min_area_px: a target's first frame has at least this much of it; its prompts go there.
        first_frame_only: targets of the first frame only, as in the exams.
        dense: propagate from the 8-point prompt too.
        entropies: any of H_Std, H_A, H_XP, H_T, H_Theta. H_Y would be sizes x 40 runs of every video and is refused.
        seed: of the seven further clicks and of the noise.
    """

    min_area_px: int = 60
    first_frame_only: bool = False
    dense: bool = True
    entropies: tuple[str, ...] = ("H_Std", "H_A")
    seed: int = 0

    def __post_init__(self) -> None:
        odd = [name for name in self.entropies if name not in ENTROPIES or name == "H_Y"]
        if odd:
            allowed = ", ".join(name for name in ENTROPIES if name != "H_Y")
            raise HeadError(f"entropies of propagated frames out of {allowed}", odd[0], "leave it out")


def harvest_tracked(
    dataset: DataSet,
    models: Mapping[str, LoadedModel],
    path: Path,
    *,
    deployed: str,
    protocol: Protocol | None = None,
    progress: Progress = lambda name, done, total: None,
) -> Shard:
    """Propagate every video's objects from one centre click and keep a row per object and frame.

    All runs of a video go on in step, so a frame is decoded once and nothing but it is held.

    Args:
        dataset: frames in time order with truth.
        models: by size; those besides the deployed one give `iou_<size>` and H_Theta.
        path: the shard; a harvest that was interrupted goes on.
        deployed: whose masks are judged.
        protocol: see there.
        progress: told each video as it starts, how many are done, and how many there are.
    Returns: the shard, kind "tracked".
    Raises:  DatasetError for a data set's own faults; HeadError for a shard of another plan, or no row.
    """
    protocol = protocol or Protocol()
    writer = ShardWriter(path, tracked_plan(dataset, models, deployed, protocol))
    total = len(dataset.video_ids)
    for done, video in enumerate(dataset.videos()):
        if not writer.done(video.video_id):
            progress(video.video_id, done, total)
            writer.add(video.video_id, *harvest_video(video, models, deployed, protocol))
    progress("writing", total, total)
    return writer.finish(dataset.video_ids)


def tracked_plan(dataset: DataSet, models: Mapping[str, LoadedModel], deployed: str, protocol: Protocol) -> Plan:
    """The plan of a tracked harvest; workers that share its videos write under the same one."""
    known = {size: {"name": model.name, "sha256": model.sha256} for size, model in models.items()}
    values = {name: getattr(protocol, name) for name in Protocol.__dataclass_fields__}
    videos = sha256("\n".join(dataset.video_ids).encode(errors="surrogatepass")).hexdigest()
    values |= {"prompt": "centre", "selection": vars(dataset.selection), "videos": videos}
    return Plan("tracked", known, deployed, dataset.name, dataset.split, values)


def harvest_video(
    video: Video, models: Mapping[str, LoadedModel], deployed: str, protocol: Protocol
) -> tuple[dict[str, list[Any]], NDArray[np.float32]]:
    """One video's columns and tokens (n, 5, d), frame by frame, then object by object."""
    frames = list(video.frames())
    targets = _targets(frames, protocol)
    columns: dict[str, list[Any]] = {}
    tokens: list[Tensor] = []
    if not targets:
        return columns, np.zeros((0, 5, 0), np.float32)
    runs = list(_runs(frames, targets, models, deployed, protocol))
    features = TrackFeatures()
    for position, frame in enumerate(frames):
        image_hw3 = frame.image()
        results = [run.step(position, image_hw3) for run in runs]
        own = results[0]
        rows = [own[_own_id(target)] for target in targets if _own_id(target) in own]
        described = dict(zip((row.object_id for row in rows), features(rows), strict=True))
        for target in targets:
            row = own.get(_own_id(target))
            line = described.get(_own_id(target))
            if row is None or line is None:
                continue
            truth_hw = frame.mask(target)
            values = _measure(target, row, truth_hw, runs, results, protocol)
            values[f"iou_{deployed}"] = values["iou_chosen"]
            values |= {name: line[i] for i, name in enumerate(FEATURES)}
            values |= {"frame_index": frame.frame_index, "object_id": target, "size": deployed}
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
            tokens.append(_tokens(row))
    if not tokens:
        return {}, np.zeros((0, 5, 0), np.float32)
    return columns, torch.stack(tokens).float().cpu().numpy()


class _Run:
    """One session over the video, fed frame by frame: a model, a view of the images, the prompts of some runs."""

    def __init__(
        self,
        name: str,
        model: LoadedModel,
        prompts: PromptSet,
        frames: Sequence[Frame],
        view: Callable[[NDArray[np.uint8], int], NDArray[np.uint8]],
    ) -> None:
        self.name, self._size, self._view = name, model.image_size, view
        self._now: tuple[int, NDArray[np.uint8]] | None = None
        session = Session(
            model.model,
            prompts,
            frames[0].size_hw(),
            len(frames),
            reverse=False,
            keep_candidates=True,
            keep_tokens=True,
        )
        session.prepare(lambda position: self._fit(frames[position].image(), position))
        self._results = session.forward(self._feed())

    def step(self, position: int, image_hw3: NDArray[np.uint8]) -> dict[int, FrameResult]:
        """Results of the next frame by object id, untracked ones left out."""
        self._now = (position, self._fit(image_hw3, position))
        return {r.object_id: r for r in next(self._results) if r.visibility != "untracked"}

    def _feed(self) -> Iterator[_Shown]:
        while self._now is not None:
            yield _Shown(*self._now)

    def _fit(self, image_hw3: NDArray[np.uint8], position: int) -> NDArray[np.uint8]:
        """As the pipeline's decoder gives frames to a model: PIL's bicubic."""
        seen = self._view(image_hw3, position)
        if seen.shape[:2] == (self._size, self._size):
            return seen
        return np.asarray(Image.fromarray(seen).resize((self._size, self._size)))


@dataclass(frozen=True)
class _Shown:
    index: int
    rgb_hw3: NDArray[np.uint8]


def _targets(frames: Sequence[Frame], protocol: Protocol) -> dict[int, int]:
    """The position of each target's prompts, by object id."""
    found: dict[int, int] = {}
    for position, frame in enumerate(frames):
        for object_id in frame.object_ids():
            if object_id not in found and int(frame.mask(object_id).sum()) >= max(1, protocol.min_area_px):
                found[object_id] = position
        if protocol.first_frame_only:
            break
    return dict(sorted(found.items()))


def _runs(
    frames: Sequence[Frame],
    targets: Mapping[int, int],
    models: Mapping[str, LoadedModel],
    deployed: str,
    protocol: Protocol,
) -> Iterator[_Run]:
    """The deployed model's own run first, then other sizes, then perturbed views."""
    own: list[ObjectPrompts] = []
    centre: list[ObjectPrompts] = []
    for target, position in targets.items():
        points_82 = dense_points(frames[position].mask(target), seed=(protocol.seed, target))
        first = _prompted(_own_id(target), position, points_82[:1])
        centre.append(first)
        own.append(first)
        if protocol.dense:
            own.append(_prompted(_own_id(target) + _DENSE, position, points_82))
        if "H_XP" in protocol.entropies:
            more = range(1, _CLICKS)
            own += [_prompted(_own_id(target) + _DENSE + k, position, points_82[k : k + 1]) for k in more]
    yield _Run("own", models[deployed], _set(own), frames, lambda image, _: image)
    for size, model in models.items():
        if size != deployed:
            yield _Run(size, model, _set(centre), frames, lambda image, _: image)
    if "H_T" in protocol.entropies:
        for name in PERTURBATIONS:
            if name != "identity":
                yield _Run(name, models[deployed], _set(centre), frames, _view(name, protocol.seed))


def _view(name: str, seed: int) -> Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]:
    return lambda image, position: perturb(name, image, (seed, position))


def _own_id(target: int) -> int:
    return target * _RUNS


def _prompted(object_id: int, position: int, points_n2: NDArray[np.float32]) -> ObjectPrompts:
    prompt = FramePrompt(position, points_n2, np.ones(len(points_n2), np.int32))
    return ObjectPrompts(object_id, None, (prompt,))


def _set(objects: Sequence[ObjectPrompts]) -> PromptSet:
    return PromptSet(tuple(objects), sha256="", source="truth")


@torch.inference_mode()
def _measure(
    target: int,
    row: FrameResult,
    truth_hw: NDArray[np.bool_],
    runs: Sequence[_Run],
    results: Sequence[Mapping[int, FrameResult]],
    protocol: Protocol,
) -> dict[str, Any]:
    """Every number of one row: IoU of the mask, its candidates and its rivals, entropies, SAM2's scores."""
    own_id = _own_id(target)
    rivals = {run.name: result[own_id] for run, result in zip(runs, results, strict=True)}
    sizes = [name for name in rivals if name not in ("own", *PERTURBATIONS)]
    dense = results[0].get(own_id + _DENSE) if protocol.dense else None
    assert row.logits_hw is not None
    assert row.candidates_3hw is not None
    assert row.candidate_scores_3 is not None
    masks = [row, *(rivals[name] for name in sizes), *([] if dense is None else [dense])]
    ious = [_iou(result.logits_hw, truth_hw) for result in masks]
    own_iou = ious[0]
    candidates = [float(iou) for iou in upsampled_iou(row.candidates_3hw[None], truth_hw[None])[0]]
    best = int(np.argmax(candidates))
    values: dict[str, Any] = {
        "prompted": row.prompted is not None,
        "visible": bool(truth_hw.any()),
        "predicted": row.visibility == "visible" and bool(upsampled_mask(row.logits_hw, truth_hw).any()),
        "chosen": row.chosen,
        "best": best + 1,
        "iou_chosen": own_iou,
        "iou_tracked": own_iou,
        "iou_unsupervised": own_iou,
        "iou": max(candidates[best], own_iou),
    }
    for j in range(3):
        values[f"candidate_score_{j}"] = float(row.candidate_scores_3[j])
        values[f"candidate_iou_{j}"] = candidates[j]
    names = [f"iou_{name}" for name in sizes] + ["iou_dense_prompt"] * (dense is not None)
    values |= dict(zip(names, ious[1:], strict=True))
    clicks = [results[0][own_id + k] for k in _clicks(protocol)]
    views = [rivals[name] for name in PERTURBATIONS if name in rivals]
    maps = {
        "H_Std": [row],
        "H_XP": clicks,
        "H_T": [row, *views] if "H_T" in protocol.entropies else [],
        "H_Theta": [row, *(rivals[name] for name in sizes)],
    }
    grid = row.logits_hw.shape[-1]
    for name, members in maps.items():
        if name in protocol.entropies and members:
            values[name] = _bits(torch.stack([_on_grid(member, grid) for member in members]).mean(0))
    if "H_A" in protocol.entropies:
        weights_3 = score_weights(row.candidate_scores_3)
        values["H_A"] = _bits((weights_3[:, None, None] * probabilities(row.candidates_3hw)).sum(0))
    return values


def _bits(map_hw: Tensor) -> float:
    return float(mask_weighted_entropy(map_hw[None])[0])


def _on_grid(result: FrameResult, size: int) -> Tensor:
    """A mask as probabilities on the deployed model's grid."""
    assert result.logits_hw is not None
    return resampled(probabilities(result.logits_hw)[None], size)[0]


def _tokens(row: FrameResult) -> Tensor:
    """(5, d): the IoU token, then every mask token."""
    assert row.tokens_2d is not None
    assert row.mask_tokens_4d is not None
    return torch.cat([row.tokens_2d[None, : row.mask_tokens_4d.shape[1]], row.mask_tokens_4d])


def _iou(logits_hw: Tensor | None, truth_hw: NDArray[np.bool_]) -> float:
    assert logits_hw is not None
    return float(upsampled_iou(logits_hw[None], truth_hw[None])[0])


def _clicks(protocol: Protocol) -> list[int]:
    """Runs of single clicks: the centre's and the seven more."""
    return [0, *range(_DENSE + 1, _DENSE + _CLICKS)] if "H_XP" in protocol.entropies else []
