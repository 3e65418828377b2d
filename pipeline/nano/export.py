"""From a training checkpoint to the weights that ship: averaged, presence threshold set, fp16 safetensors."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.models import build_model
from pipeline.nano.clips import render_clip
from pipeline.nano.follow import first_frame_prompts, follow

log = logging.getLogger(__name__)

VALIDATION_FIRST_SEED = 100_000_000
MOST_VISIBLE_CALLED_ABSENT = 0.042  # below the exam's 5%, with room for another draw of clips
PRESENCE_BIAS = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"
MIN_AREA_PX = 60

Result = TypeVar("Result")
_model: Any = None


def averaged_weights(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The moving average of a training run and how far the run got (`step`, `seconds`)."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return saved["average"], {"step": saved["step"], "seconds": saved["seconds"]}


def write_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write fp16 safetensors, whole or not at all; the same weights give the same bytes."""
    scratch = path.with_suffix(".tmp")
    save_file({k: v.detach().to(torch.float16).contiguous() for k, v in sorted(state.items())}, scratch)
    scratch.chmod(0o644)
    os.replace(scratch, path)


def open_weights(config: str, weights: Path) -> Any:
    """The model with these weights, ready to run."""
    model = build_model(config)
    model.load_state_dict(load_file(weights))
    return model


def _start_worker(config: str, weights: Path) -> None:
    global _model
    torch.set_num_threads(1)
    _model = open_weights(config, weights)


def worker_model() -> Any:
    """The model of a worker process that `over_clips` started."""
    return _model


def over_clips(
    work: Callable[[int], Result], seeds: Sequence[int], config: str, weights: Path, processes: int | None = None
) -> list[Result]:
    """Apply a function to every seed in worker processes that hold the model; results in the seeds' order.

    Args:
        work: a module-level function; it finds the model in `worker_model()`.
        seeds: one call each.
        config, weights: of the model.
        processes: None takes one per core.
    """
    count = processes or max(1, os.cpu_count() or 1)
    with ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(config, weights)
    ) as pool:
        return list(pool.map(work, seeds, chunksize=4))


def _presence_of_clip(seed: int) -> tuple[list[float], list[float]]:
    clip = render_clip(seed)
    gone: list[float] = []
    seen: list[float] = []
    for kind in ("click", "box"):
        prompts = first_frame_prompts(clip, kind, MIN_AREA_PX)
        for row in follow(worker_model(), clip, prompts) if prompts else ():
            if row.frame_index:
                (seen if row.truth_px else gone).append(float(row.result.object_score or 0.0))
    return gone, seen


def presence_scores(config: str, weights: Path, clips: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Object scores of tracked frames of validation clips: where the truth is absent, and where it is visible."""
    seeds = range(VALIDATION_FIRST_SEED, VALIDATION_FIRST_SEED + clips)
    parts = over_clips(_presence_of_clip, seeds, config, weights)
    return np.concatenate([np.array(p[0]) for p in parts]), np.concatenate([np.array(p[1]) for p in parts])


def export(checkpoint: Path, weights: Path, config: str, clips: int, rounds: int = 2) -> dict[str, float]:
    """Write the weights, with the presence head's bias shifted to its operating point.

    SAM2 calls an object absent at a logit of 0 or less; training aims at no rate. The bias is shifted so that
    at most `MOST_VISIBLE_CALLED_ABSENT` of the visible validation frames are called absent. A shift changes what the
    memory sees, so it is measured again after each move.

    Args:
        checkpoint: of a training run.
        weights: the safetensors file to write.
        config: the model's configuration.
        clips: validation clips (seeds of their own).
        rounds: moves at most.
    Returns: steps and seconds of training, the total shift, and the rates of the weights as written.
    """
    state, facts = averaged_weights(checkpoint)
    facts["presence_shift"] = 0.0
    write_weights(state, weights)
    facts["presence_clips"] = clips
    for move in range(rounds + 1):
        gone, seen = presence_scores(config, weights, clips)
        facts["absent_recognised"] = float((gone <= 0).mean())
        facts["visible_called_absent"] = float((seen <= 0).mean())
        shift = -float(np.quantile(seen, MOST_VISIBLE_CALLED_ABSENT))
        log.info(
            "presence: absent recognised %(absent_recognised).3f, visible called absent %(visible_called_absent).3f",
            facts,
        )
        if abs(shift) < 0.05 or move == rounds:
            break
        log.info("presence: bias shifted by %+.3f", shift)
        state[PRESENCE_BIAS] = state[PRESENCE_BIAS] + shift
        facts["presence_shift"] += shift
        write_weights(state, weights)
    return facts
