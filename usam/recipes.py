"""How heads are trained: ours, and the published settings by data set and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from usam.errors import HeadError
from usam.targets import TRACKED_HEAD, shift_of


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a head besides its rows.

    Attributes:
        optimizer: "adamw" (ours) or "sgd" (published).
        lr, momentum, weight_decay: of the optimiser. Ours decays towards the start, so a warm start is a residual.
        batch_rows: rows per step. max_epochs: passes over the training rows.
        patience: epochs without a better loss on the stopping videos before the end; None never stops early.
        dropout: on the hidden layers, [0, 1).
        members: MLPs per head, each with its own order of rows and its own stopping videos; averaged.
        standardise: learn on tokens of mean 0 and deviation 1 (folded into the first layer afterwards).
        heldout_fraction: videos kept for the figures on the card; nothing is chosen by them.
        seed: of the split, the order of rows, the start and the dropout.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 3e-4
    momentum: float = 0.0
    weight_decay: float = 0.1
    batch_rows: int = 256
    max_epochs: int = 40
    patience: int | None = 6
    dropout: float = 0.2
    members: int = 4
    standardise: bool = True
    heldout_fraction: float = 0.2
    seed: int = 0


def ours(head: str, *, seed: int = 0) -> Recipe:
    """Our training of a head.

    The score that routes masks is an ensemble of five, so that for every row of the training videos one member has not
    seen it (`usam.stack` needs that); the others are pairs, which keeps all heads cheap beside a frame.

    Args:    head: a head. seed: of everything random.
    Raises:  HeadError for an unknown head.
    """
    shift_of(head)
    return Recipe(members=5 if head == TRACKED_HEAD else 2, seed=seed)


_DAVIS = {
    "task_gap": (158, 55, 0.029406, 0.70937),
    "model_gap": (235, 77, 0.0039679, 0.128),
    "prompt_gap": (154, 40, 0.00089891, 0.53826),
    "iou_tiny": (151, 63, 0.070274, 0.30754),
    "iou_small": (193, 70, 0.0024243, 0.81485),
    "iou_base_plus": (130, 70, 0.0016774, 0.8908),
    "iou_large": (232, 42, 0.016484, 0.12347),
    "iou_dense_prompt": (62, 80, 0.023026, 0.24429),
    "iou_unsupervised": (118, 57, 0.03437, 0.88526),
}
_ADE20K = {"task_gap": (208, 75, 0.041111, 0.24591), "prompt_gap": (193, 70, 0.0024243, 0.81485)}
_ALL_HEADS = {
    "coco": (189, 36, 0.0087131, 0.16393),
    "sav": (193, 9, 0.0087131, 0.16393),
    "ade20k": (106, 79, 0.0013076, 0.83033),
}


def published(dataset: str, head: str, *, seed: int = 0) -> Recipe:
    """The published training of a head: MSE, SGD, weight decay 1e-3, no schedule, one MLP, no early stop.

    Args:
        dataset: coco, sav, ade20k, davis or mose (MOSE has none of its own and takes DAVIS's).
        head: a head; `iou_tracked`, which is ours, takes the settings of `iou_unsupervised`.
        seed: of everything random.
    Returns: the recipe.
    Raises:  HeadError for an unknown data set or head.
    Source:  the public code of Kaiser et al., ICML 2025.
    """
    shift_of(head)
    name = "iou_unsupervised" if head == TRACKED_HEAD else head
    if dataset in ("davis", "mose"):
        settings = _DAVIS[name]
    elif dataset in _ALL_HEADS:
        settings = _ADE20K.get(name, _ALL_HEADS[dataset]) if dataset == "ade20k" else _ALL_HEADS[dataset]
    else:
        raise HeadError("coco, sav, ade20k, davis or mose", repr(dataset), "choose one of these")
    batch_rows, epochs, lr, momentum = settings
    return Recipe(
        optimizer="sgd",
        lr=lr,
        momentum=momentum,
        weight_decay=1e-3,
        batch_rows=batch_rows,
        max_epochs=epochs,
        patience=None,
        dropout=0.0,
        members=1,
        standardise=False,
        seed=seed,
    )
