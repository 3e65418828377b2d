"""Harvests single images as the paper does: every model size from one centre click, its tokens, IoU and entropies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from usam.datasets.samples import DataSet, Frame
from usam.errors import HeadError
from usam.image import decode_points, upsampled_iou, upsampled_mask
from usam.prompts import DENSE_POINTS, dense_points
from usam.scorers import Entropy, ImageViews, Select, entropies_by_model
from usam.shard import ENTROPIES, Plan, Shard, ShardWriter
from usam.targets import SIZED_HEADS

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Told at every frame which video it is of, how many videos are done, and how many there are."""


class NamedModel(Protocol):
    """A SAM2 model with what identifies it; `pipeline.models.LoadedModel` is one."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def model(self) -> Any: ...


def harvest_frames(
    dataset: DataSet,
    models: Mapping[str, NamedModel],
    path: Path,
    *,
    deployed: str,
    entropies: Sequence[Entropy] = (),
    select: Select = "sam_score",
    seed: int = 0,
    progress: Progress = lambda name, done, total: None,
) -> Shard:
    """Run models on every frame of a data set, without memory, and write a shard of kind "frames".

    Every object gets a row per model size: tokens and masks of that size from the centre click with three masks out.
    `iou_chosen` (also `iou_unsupervised`) is the IoU of the mask that SAM2 scores best, `iou` that of the best of the
    three, `iou_dense_prompt` that of the best of three from eight clicks; `iou_tiny` to `iou_large` are `iou` of the
    other sizes. Each (model, view of the image) is encoded once; clicks are decoded in batches.

    An object without a pixel on a frame gives no row there. A call that was killed goes on where it stopped, and ends
    with the bytes of one that was not; a finished shard of the same plan is opened and nothing is run.

    Args:
        dataset: a split; its videos in order.
        models: by size (tiny, small, base_plus, large), all of one token width.
        path: the shard's folder.
        deployed: the size whose masks are judged.
        entropies: which, for each row's size; H_Theta and H_Y run over the sizes given.
        select: how entropies pick a mask, see `usam.scorers.image_entropies`.
        seed: of the random clicks and of H_T's noise; what an object gets does not depend on the other objects.
        progress: see `Progress`.
    Returns: the finished shard.
    Raises:  HeadError for an unknown size or entropy, models of several widths, a folder that holds another harvest,
             or no row at all; DatasetError for what is wrong with the data set's files.
    Source:  Kaiser et al., ICML 2025, section 4 (rows and targets).
    """
    _check(models, entropies, select, seed)
    models = {size: models[size] for size in SIZED_HEADS if size in models}  # the order of rows is no caller's
    writer = ShardWriter(path, _plan(dataset, models, deployed, entropies, select, seed))
    nets = {size: model.model for size, model in models.items()}
    ids, empty = dataset.video_ids, 0
    for done, video_id in enumerate(ids):
        if writer.done(video_id):
            continue
        parts, tokens = [], []
        for frame in dataset.read(video_id):
            progress(video_id, done, len(ids))
            masks = {object_id: frame.mask(object_id) for object_id in frame.object_ids()}
            truths = {object_id: mask_hw for object_id, mask_hw in masks.items() if mask_hw.any()}
            empty += len(masks) - len(truths)
            if truths:
                rows, tokens_n5d = _frame_rows(frame, truths, nets, entropies, select, (seed, _number(video_id)))
                parts.append(rows)
                tokens.append(tokens_n5d)
        columns = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
        writer.add(video_id, columns, np.concatenate(tokens) if tokens else np.zeros((0, 5, 0)))
    if empty:
        log.info("left out %d objects without a pixel on their frame", empty)
    progress("writing", len(ids), len(ids))
    return writer.finish(ids)


def _frame_rows(
    frame: Frame,
    truths: Mapping[int, NDArray[np.bool_]],
    nets: Mapping[str, Any],
    entropies: Sequence[Entropy],
    select: Select,
    seed: tuple[int, int],
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """All sizes' rows of one frame, size by size, and their (n, 5, d) tokens."""
    truth_khw = np.stack(list(truths.values()))
    own = (*seed, frame.frame_index)
    points_k82 = np.stack([dense_points(mask_hw, (*own, object_id)) for object_id, mask_hw in truths.items()])
    views = ImageViews(nets, frame.image(), own)
    measured = {size: _one_size(views, size, points_k82, truth_khw) for size in nets}
    if entropies:
        bits = entropies_by_model(views, list(nets), points_k82, truth_khw, select=select, kinds=entropies)
        for size, values in bits.items():
            measured[size][0].update({kind: bits_k.numpy() for kind, bits_k in values.items()})
    of_sizes = {SIZED_HEADS[size]: columns["iou"] for size, (columns, _) in measured.items()}
    parts = [
        {
            "frame_index": np.full(len(truths), frame.frame_index),
            "object_id": np.fromiter(truths, np.int64),
            "size": np.full(len(truths), size),
            "prompted": np.ones(len(truths), bool),
            "visible": np.ones(len(truths), bool),
            **columns,
            **of_sizes,
        }
        for size, (columns, _) in measured.items()
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return joined, np.concatenate([tokens_k5d for _, tokens_k5d in measured.values()])


@torch.inference_mode()
def _one_size(
    views: ImageViews, size: str, points_k82: NDArray[np.float32], truth_khw: NDArray[np.bool_]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """What one model makes of every object's centre click, and of its eight clicks at once."""
    net, image = views.model(size), views.plain(size)
    call = decode_points(net, image, points_k82[:, :1])
    iou_k3 = upsampled_iou(call.candidates_n3hw, truth_khw).cpu().numpy()
    dense_k3 = upsampled_iou(decode_points(net, image, points_k82).candidates_n3hw, truth_khw).cpu().numpy()
    chosen_k, score_k3 = call.chosen_n.cpu().numpy(), call.candidate_scores_n3.float().cpu().numpy()
    iou_chosen_k = iou_k3[np.arange(len(iou_k3)), chosen_k - 1]
    predicted_k = iou_chosen_k > 0
    for k in np.flatnonzero(~predicted_k):  # beside its object, or nowhere
        predicted_k[k] = upsampled_mask(call.candidates_n3hw[k, chosen_k[k] - 1], truth_khw[k]).any()
    columns = {
        "predicted": predicted_k,
        "chosen": chosen_k,
        "best": iou_k3.argmax(1) + 1,
        "sam_score": call.sam_score_n.float().cpu().numpy(),
        "iou_chosen": iou_chosen_k,
        "iou_unsupervised": iou_chosen_k,
        "iou": iou_k3.max(1),
        "iou_dense_prompt": dense_k3.max(1),
        **{
            f"candidate_{what}_{j}": of_k3[:, j]
            for what, of_k3 in (("score", score_k3), ("iou", iou_k3))
            for j in range(3)
        },
    }
    tokens_k5d = torch.cat([call.iou_token_nd[:, None], call.mask_tokens_n4d], 1).float().cpu().numpy()
    return columns, tokens_k5d


def _plan(
    dataset: DataSet,
    models: Mapping[str, NamedModel],
    deployed: str,
    entropies: Sequence[str],
    select: str,
    seed: int,
) -> Plan:
    protocol = {
        "prompt": "centre click, three masks",
        "dense_prompt": f"{DENSE_POINTS} clicks, three masks",
        "entropies": [kind for kind in ENTROPIES if kind in entropies],
        "select": select,
        "seed": seed,
        "selection": asdict(dataset.selection),
        "videos": sha256("\n".join(dataset.video_ids).encode(errors="surrogatepass")).hexdigest(),
    }
    named = {size: {"name": model.name, "sha256": model.sha256} for size, model in models.items()}
    return Plan("frames", named, deployed, dataset.name, dataset.split, protocol)


def _check(models: Mapping[str, NamedModel], entropies: Sequence[str], select: str, seed: int) -> None:
    odd = [size for size in models if size not in SIZED_HEADS]
    if odd or not models:
        got = repr(odd[0]) if odd else "none"
        raise HeadError(f"models by size out of {', '.join(SIZED_HEADS)}", got, "name each model's size")
    odd = [kind for kind in entropies if kind not in ENTROPIES]
    if odd:
        raise HeadError(f"entropies out of {', '.join(ENTROPIES)}", repr(odd[0]), "correct the name")
    if select not in ("gt", "sam_score"):
        raise HeadError("select gt or sam_score", repr(select), "correct it")
    if seed < 0:
        raise HeadError("a seed of at least 0", str(seed), "give another")
    widths = {size: int(model.model.hidden_dim) for size, model in models.items()}
    if len(set(widths.values())) > 1:
        got = ", ".join(f"{width} of {size}" for size, width in widths.items())
        raise HeadError("models with tokens of one width", got, "harvest models of different widths apart")


def _number(video_id: str) -> int:
    """A video's part of a seed."""
    return int.from_bytes(sha256(video_id.encode(errors="surrogatepass")).digest()[:8], "big")
