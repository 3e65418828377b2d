"""Rows to fit heads on, from videos that lie beside their prompts and their truth; kept video by video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.checkpoints import model_size
from pipeline.drops import PROMPTS_SUFFIX, VIDEO_SUFFIXES
from pipeline.errors import HeadError
from pipeline.models import LoadedModel
from pipeline.prompts import PromptSet, load_prompts
from pipeline.propagate import FrameResult, Session
from pipeline.settings import Settings
from pipeline.video.probe import VideoInfo, probe_video
from pipeline.video.stream import FrameStream
from usam.features import FEATURES, TrackFeatures
from usam.image import upsampled_iou, upsampled_mask
from usam.shard import Plan, Shard, ShardWriter
from usam.targets import mask_iou

TRUTH_SUFFIX = ".truth.npz"
IdMaps = NDArray[np.uint8]


@dataclass(frozen=True)
class Triple:
    """A video, its prompts and its truth, by path."""

    video: Path
    prompts: Path
    truth: Path

    @property
    def stem(self) -> str:
        """What the three files are called."""
        return self.truth.name.removesuffix(TRUTH_SUFFIX)

    def stamp(self) -> list[Any]:
        """Sizes and times of the files: rows of other files are not gone on with."""
        stats = [path.stat() for path in (self.video, self.prompts, self.truth)]
        return [self.stem, *((stat.st_size, stat.st_mtime_ns) for stat in stats)]


def find_triples(folder: Path) -> list[Triple]:
    """All `STEM.truth.npz` of a folder with the video and the prompts of that stem.

    Raises: HeadError for fewer than two, or one whose video or prompts are missing.
    """
    found = []
    for truth in sorted(folder.glob(f"*{TRUTH_SUFFIX}")):
        stem = truth.name.removesuffix(TRUTH_SUFFIX)
        videos = [path for path in folder.iterdir() if path.stem == stem and path.suffix.lower() in VIDEO_SUFFIXES]
        prompts = truth.with_name(stem + PROMPTS_SUFFIX)
        step = "put the three files of a video side by side"
        if len(videos) != 1:
            raise HeadError(f"one video {stem}.mp4 beside {truth.name}", str(len(videos)) if videos else "none", step)
        if not prompts.is_file():
            raise HeadError(f"{prompts.name} beside {truth.name}", "none", step)
        found.append(Triple(videos[0], prompts, truth))
    if len(found) < 2:
        step = "add videos with truth (docs/heads.md)"
        raise HeadError(f"at least two videos with {TRUTH_SUFFIX} in {folder}", str(len(found)), step)
    return found


def harvest_triples(
    triples: list[Triple],
    loaded: LoadedModel,
    settings: Settings,
    path: Path,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Shard:
    """Propagate every video from its own prompts and keep a row per scored mask.

    Args:
        triples: from `find_triples`.
        loaded: the model; its masks are judged.
        settings: decoding and precision.
        path: the shard; a harvest that was interrupted goes on.
        progress: told each video's name as it starts, the videos done, and how many there are.
    Returns: the shard, kind "tracked": `iou_tracked` and the best of the three masks, nothing of other sizes.
    Raises:  HeadError for truth of another size or without the prompted objects, or a shard of other files;
             VideoError, PromptError for a video or prompts that cannot be read.
    """
    size = model_size(loaded.name)
    protocol = {"prompt": "given", "precision": settings.model.precision, "files": [one.stamp() for one in triples]}
    known = {size: {"name": loaded.name, "sha256": loaded.sha256}}
    writer = ShardWriter(path, Plan("tracked", known, size, "videos with prompts and truth", "all", protocol))
    for done, triple in enumerate(triples):
        progress(triple.stem, done, len(triples))
        if not writer.done(triple.stem):
            writer.add(triple.stem, *_video_rows(triple, loaded, settings, size))
    return writer.finish([triple.stem for triple in triples])


def _video_rows(
    triple: Triple, loaded: LoadedModel, settings: Settings, size: str
) -> tuple[dict[str, list[Any]], NDArray[np.float32]]:
    info = probe_video(triple.video, settings.decode)
    prompts = load_prompts(triple.prompts)
    prompts.validate(info)
    ids_thw = _read_ids(triple.truth)
    if ids_thw.shape != (info.num_frames, info.height, info.width):
        step = "give one id map per frame at the video's size"
        expected = f"truth of {(info.num_frames, info.height, info.width)} for {triple.video.name}"
        raise HeadError(expected, str(ids_thw.shape), step)
    seen = set(np.unique(ids_thw).tolist())
    unknown = [item.object_id for item in prompts.objects if item.object_id not in seen]
    if unknown:
        got = f"ids {', '.join(map(str, sorted(seen - {0}))) or 'of no object'}"
        step = "number objects alike in prompts and truth"
        raise HeadError(f"object {unknown[0]} of {triple.prompts.name} in {triple.truth.name}", got, step)
    columns: dict[str, list[Any]] = {}
    tokens: list[Tensor] = []
    features = TrackFeatures()
    for results in _propagated(info, prompts, loaded, settings):
        for result, line in zip(results, features(results), strict=True):
            if line is None:  # a given mask, or not followed here
                continue
            values = _measured(result, ids_thw[result.frame_index] == result.object_id)
            values |= {name: line[i] for i, name in enumerate(FEATURES)} | {"size": size}
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
            assert result.tokens_2d is not None
            assert result.mask_tokens_4d is not None
            width = result.mask_tokens_4d.shape[1]
            tokens.append(torch.cat([result.tokens_2d[None, :width], result.mask_tokens_4d]).cpu())
    return columns, torch.stack(tokens).numpy() if tokens else np.zeros((0, 5, 0), np.float32)


def _propagated(
    info: VideoInfo, prompts: PromptSet, loaded: LoadedModel, settings: Settings
) -> Iterator[list[FrameResult]]:
    session = Session(
        loaded.model, prompts, (info.height, info.width), info.num_frames, reverse=False, keep_candidates=True,
        precision=settings.model.precision,
    )  # fmt: skip
    with FrameStream(info, settings.decode, resize=loaded.image_size, indices=session.conditioning_frames) as stream:
        prompted = {frame.index: frame.rgb_hw3 for frame in stream}
    session.prepare(prompted.__getitem__)
    with FrameStream(info, settings.decode, resize=loaded.image_size) as stream:
        yield from session.forward(stream)


def _measured(result: FrameResult, truth_hw: NDArray[np.bool_]) -> dict[str, Any]:
    """A row's numbers, but for its features."""
    assert result.logits_hw is not None
    assert result.candidates_3hw is not None
    assert result.candidate_scores_3 is not None
    predicted_hw = upsampled_mask(result.logits_hw, truth_hw)
    own = float(mask_iou(predicted_hw, truth_hw))
    candidates = upsampled_iou(result.candidates_3hw[None], truth_hw[None])[0].tolist()
    scores = result.candidate_scores_3.tolist()
    return {
        "frame_index": result.frame_index,
        "object_id": result.object_id,
        "prompted": result.prompted is not None,
        "visible": bool(truth_hw.any()),
        "predicted": result.visibility == "visible" and bool(predicted_hw.any()),
        "chosen": result.chosen,
        "best": 1 + int(np.argmax(candidates)),
        "iou": max(*candidates, own),
        **dict.fromkeys(("iou_chosen", "iou_tracked", "iou_unsupervised"), own),
        **{f"candidate_iou_{j}": candidates[j] for j in range(3)},
        **{f"candidate_score_{j}": scores[j] for j in range(3)},
    }


def _read_ids(truth: Path) -> IdMaps:
    step = "write it with numpy.savez_compressed"
    try:
        with np.load(truth, allow_pickle=False) as data:
            ids_thw: IdMaps = data["ids_thw"]
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        raise HeadError(f"an array ids_thw in {truth}", type(error).__name__, step) from error
    if ids_thw.ndim != 3 or ids_thw.dtype.kind not in "ui":
        raise HeadError(
            f"ids_thw (frames, height, width) of whole numbers in {truth}", f"{ids_thw.dtype} {ids_thw.shape}", step
        )
    return ids_thw
