"""A frame's score and gaps from its heads and its track: small MLPs that correct what `iou_tracked` says."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from usam.bank_files import file_sha256
from usam.errors import HeadError, ShapeError
from usam.features import FEATURES
from usam.targets import TRACKED_HEAD, shift_of
from usam.train import fold_of_rows

_LOG = logging.getLogger(__name__)
FORMAT = "masksieve-stacker-1"
_SQUEEZE = 1e-3  # keeps logits of the base score finite


@dataclass(frozen=True)
class StackerRecipe:
    """Everything that decides a stacker besides its rows.

    Attributes:
        members: MLPs, each stopped on videos of its own; averaged.
        hidden: units of both hidden layers. dropout: on them, [0, 1).
        lr, weight_decay, batch_rows, max_epochs, patience: of AdamW with early stopping.
        seed: of everything random.
    """

    members: int = 8
    hidden: int = 48
    dropout: float = 0.2
    lr: float = 2e-3
    weight_decay: float = 0.02
    batch_rows: int = 512
    max_epochs: int = 60
    patience: int = 8
    seed: int = 0


@dataclass(frozen=True)
class StackerCard:
    """What a stacker belongs to: the JSON beside its weights.

    Attributes:
        model_name, model_sha256: the deployed model. heads_sha256: the heads whose outputs it reads.
        heads: these heads, in the order of its inputs; `usam.features.FEATURES` come after them.
        targets: what it predicts: `iou_tracked` first, then gaps.
        recipe: how it was trained. heldout: figures on videos that took no part.
    """

    model_name: str
    model_sha256: str
    heads_sha256: str
    heads: tuple[str, ...]
    targets: tuple[str, ...] = (TRACKED_HEAD,)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    heldout: Mapping[str, Any] = field(default_factory=dict)


class Stacker:
    """`sigmoid(logit(iou_tracked) + g(heads, features))`, g the mean of small MLPs; gaps without the first term.

    All MLPs are evaluated at once.

    Args:
        states: `mean`, `deviation` (F,); `weight.{0,1,2}` (T * M, in, out), `bias.{0,1,2}` (T * M, 1, out): T targets
            of M MLPs each.
        card: origin; names the heads.
    Raises: ShapeError for tensors that do not fit the card.
    """

    def __init__(self, states: Mapping[str, Tensor], card: StackerCard) -> None:
        width = len(card.heads) + len(FEATURES)
        if TRACKED_HEAD not in card.heads or card.targets[:1] != (TRACKED_HEAD,):
            got = f"{', '.join(card.heads)} for {', '.join(card.targets)}"
            raise HeadError(f"a stacker that reads {TRACKED_HEAD} and corrects it", got, "train it with that head")
        if tuple(states["mean"].shape) != (width,) or states["weight.0"].shape[1] != width:
            raise ShapeError(f"a stacker of {width} inputs", str(tuple(states["weight.0"].shape)), "train it again")
        self.card, self._states = card, dict(states)
        self._base = card.heads.index(TRACKED_HEAD)

    def to(self, device: torch.device | str) -> Stacker:
        """The stacker itself, moved."""
        self._states = {name: value.to(device) for name, value in self._states.items()}
        return self

    def states(self) -> dict[str, Tensor]:
        """Its tensors, as the constructor takes them."""
        return dict(self._states)

    def sha256(self) -> str:
        """Checksum of what it computes."""
        digest = hashlib.sha256(repr((self.card.heads, self.card.targets)).encode())
        for _, value in sorted(self._states.items()):
            digest.update(value.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def stacked(self, heads_nh: Tensor, features_nf: Tensor) -> Tensor:
        """Every target.

        Args:
            heads_nh: (n, H) float, the outputs of `card.heads`.
            features_nf: (n, F) float, `usam.features.FEATURES`.
        Returns: (T, n) float32 in the order of `card.targets`: IoU in [0, 1], gaps in [-0.5, 0.5].
        """
        s, count = self._states, len(self.card.targets)
        x_ni = torch.cat([heads_nh, features_nf], dim=1).float()
        x_mni = ((x_ni - s["mean"]) / s["deviation"]).clamp(-6, 6).expand(len(s["weight.0"]), -1, -1)
        logits_tn = _run(s, x_mni).unflatten(0, (count, -1)).mean(1)
        logits_tn[0] += _logit(x_ni[:, self._base])
        shifts_t = logits_tn.new_tensor([shift_of(name) for name in self.card.targets])
        scores_tn: Tensor = logits_tn.sigmoid() - shifts_t[:, None]
        return scores_tn

    def __call__(self, heads_nh: Tensor, features_nf: Tensor) -> Tensor:
        """The frame's score, (n,) float32 in [0, 1]: the first target of `stacked`."""
        score_n: Tensor = self.stacked(heads_nh, features_nf)[0]
        return score_n


def fit_stacker(
    heads: Sequence[str],
    heads_nh: ArrayLike,
    features_nf: ArrayLike,
    targets: Mapping[str, ArrayLike],
    video_id_n: ArrayLike,
    card: StackerCard,
    recipe: StackerRecipe | None = None,
) -> Stacker:
    """Train a stacker.

    The head outputs must be those of heads that have not seen the row's video (`usam.fit_bank` keeps, for every member,
    the videos that it was not trained on): a stacker that is shown heads on their own training rows trusts them.

    Args:
        heads: names of the columns of `heads_nh`.
        heads_nh: (n, H). features_nf: (n, F). video_id_n: (n,) names.
        targets: by name (n,) in [0, 1]: `iou_tracked`, and gaps shifted by +0.5.
        card: goes with the result; heads, targets and recipe are filled in.
        recipe: ours if None.
    Returns: the stacker.
    Raises:  ShapeError, HeadError for arrays that do not fit or are not finite, or fewer than two videos.
    """
    recipe = recipe or StackerRecipe()
    inputs = np.concatenate([np.asarray(heads_nh, np.float32), np.asarray(features_nf, np.float32)], 1)
    videos = np.asarray(video_id_n)
    names = (TRACKED_HEAD, *(name for name in targets if name != TRACKED_HEAD))
    values = [np.asarray(targets[name], np.float32) for name in names]
    if inputs.shape != (len(videos), len(heads) + len(FEATURES)) or any(v.shape != videos.shape for v in values):
        raise ShapeError(f"inputs (n, {len(heads) + len(FEATURES)})", str(inputs.shape), "give one row per mask")
    if not np.isfinite(inputs).all() or not all(np.isfinite(v).all() for v in values):
        raise HeadError("finite features and targets", "a value that is not", "drop those rows")
    if len(np.unique(videos)) < 2:
        raise HeadError("rows of at least 2 videos", "1", "harvest more clips")
    generator = torch.Generator().manual_seed(recipe.seed)
    x = torch.from_numpy(inputs)
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp_min(1e-3)
    base_n = _logit(x[:, list(heads).index(TRACKED_HEAD)])
    x = ((x - mean) / deviation).clamp(-6, 6)
    everything = np.ones(len(videos), bool)
    fold_n = torch.from_numpy(fold_of_rows(videos, everything, max(5, recipe.members), recipe.seed))
    fitted = [
        _fit(x, torch.from_numpy(value), base_n if name == TRACKED_HEAD else None, fold_n, recipe, generator)
        for name, value in zip(names, values, strict=True)
    ]
    states = {key: torch.cat([one[key] for one in fitted]) for key in fitted[0]}
    filled = replace(card, heads=tuple(heads), targets=names, recipe=asdict(recipe) | dict(card.recipe))
    return Stacker(states | {"mean": mean, "deviation": deviation}, filled)


def save_stacker(stacker: Stacker, path: Path) -> Path:
    """Write `path` (safetensors) and its card (same stem, .json), the card last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    card = path.with_suffix(".json")
    card.unlink(missing_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({k: v.cpu().contiguous() for k, v in sorted(stacker.states().items())}, part, {"format": FORMAT})
    values = {"format": FORMAT, "features": list(FEATURES), "weights_sha256": file_sha256(part), **asdict(stacker.card)}
    part.chmod(0o644)  # safetensors writes for its owner alone
    part.replace(path)
    part = card.with_name(card.name + ".part")
    part.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    part.replace(card)
    return path


def load_stacker(path: Path, *, heads_sha256: str | None = None) -> Stacker:
    """Read what `save_stacker` wrote.

    Args:    path: the safetensors file. heads_sha256: of the heads that will feed it; None skips the check.
    Raises:  HeadError for a file that is missing, damaged, of other features, or made for other heads.
    """
    try:
        values = json.loads(path.with_suffix(".json").read_text())
        if values["format"] != FORMAT or values["features"] != list(FEATURES):
            raise HeadError(f"a stacker of format {FORMAT} and this release's features", str(path), "train it again")
        names = StackerCard.__dataclass_fields__
        lists = {name: tuple(values[name]) for name in ("heads", "targets")}
        card = StackerCard(**{name: values[name] for name in names} | lists)
        found, wanted = file_sha256(path), values.get("weights_sha256")
        if wanted not in (None, found):
            raise HeadError(f"weights {str(wanted)[:12]} in {path}", found[:12], "copy its two files again")
        stacker = Stacker(load_file(path), card)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        got = f"{type(error).__name__}: {error}"
        raise HeadError(f"a stacker in {path}", got, "copy its two files again") from error
    if heads_sha256 is not None and card.heads_sha256 != heads_sha256:
        got = card.heads_sha256[:12]
        raise HeadError(f"a stacker for the heads {heads_sha256[:12]}", got, "train it for these heads")
    return stacker


def unseen_outputs(
    names: Sequence[str], outputs_mn: ArrayLike, unseen_mn: ArrayLike
) -> tuple[list[str], NDArray[np.float32]]:
    """Head outputs of ensembles, each row by the members that were not trained on its video.

    Args:
        names: (M,) the head of each MLP. outputs_mn: (M, n). unseen_mn: (M, n) bool.
    Returns: the heads, and (n, H) their outputs, gaps shifted back.
    Raises:  HeadError for a row that every member of a head has seen.
    """
    outputs, unseen = np.asarray(outputs_mn, np.float32), np.asarray(unseen_mn, bool)
    heads = list(dict.fromkeys(names))
    columns = []
    for head in heads:
        own = np.array([name == head for name in names])
        count_n = unseen[own].sum(0)
        if not count_n.all():
            raise HeadError(f"a member of {head} for every row that has not seen it", "none for some", "fit 5 members")
        columns.append((outputs[own] * unseen[own]).sum(0) / count_n - shift_of(head))
    return heads, np.stack(columns, 1).astype(np.float32)


def _logit(x_n: Tensor) -> Tensor:
    return x_n.clamp(_SQUEEZE, 1 - _SQUEEZE).logit()


def _run(
    s: Mapping[str, Tensor], x_mni: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    for i in range(3):
        x_mni = torch.baddbmm(s[f"bias.{i}"], x_mni, s[f"weight.{i}"])
        if i < 2:
            x_mni = torch.nn.functional.silu(x_mni)
            if dropout:
                x_mni = x_mni * (torch.rand(x_mni.shape, generator=generator) >= dropout) / (1 - dropout)
    return x_mni[..., 0]


def _fit(
    x: Tensor, y: Tensor, base_n: Tensor | None, fold_n: Tensor, recipe: StackerRecipe, generator: torch.Generator
) -> dict[str, Tensor]:
    """All members at once; each draws from the rows outside of its fold and keeps its best epoch on the fold."""
    m, width = recipe.members, x.shape[1]
    base_n = torch.zeros(len(y)) if base_n is None else base_n
    sizes = [(width, recipe.hidden), (recipe.hidden, recipe.hidden), (recipe.hidden, 1)]
    s: dict[str, Tensor] = {}
    for i, (rows, columns) in enumerate(sizes):
        scale = 0.0 if i == 2 else rows**-0.5  # starts as the head itself
        s[f"weight.{i}"] = torch.randn(m, rows, columns, generator=generator).mul_(scale).requires_grad_(True)
        s[f"bias.{i}"] = torch.zeros(m, 1, columns).requires_grad_(True)
    optimizer = torch.optim.AdamW(list(s.values()), recipe.lr, weight_decay=recipe.weight_decay)
    # With fewer videos than members, some stop on the videos of another.
    used = sorted({int(k) for k in fold_n.unique()})
    own, stop = (
        [torch.nonzero((fold_n == used[k % len(used)]) == out)[:, 0] for k in range(m)] for out in (False, True)
    )
    best = {name: value.detach().clone() for name, value in s.items()}
    best_loss, since = torch.full((m,), torch.inf), torch.zeros(m)
    batch = min(recipe.batch_rows, *(len(rows) for rows in own))
    steps = min(len(rows) for rows in own) // batch
    for _ in range(recipe.max_epochs):
        orders = [rows[torch.randperm(len(rows), generator=generator)] for rows in own]
        for step in range(steps):
            rows_mb = torch.stack([order[step * batch : (step + 1) * batch] for order in orders])
            out = (base_n[rows_mb] + _run(s, x[rows_mb], recipe.dropout, generator)).sigmoid()
            loss = ((out - y[rows_mb]) ** 2).mean(1).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for k in range(m):
                mine = {name: value[k : k + 1] for name, value in s.items()}
                out = (base_n[stop[k]] + _run(mine, x[stop[k]][None])[0]).sigmoid()
                stop_loss = ((out - y[stop[k]]) ** 2).mean()
                if stop_loss < best_loss[k]:
                    best_loss[k], since[k] = stop_loss, 0
                    for name, value in s.items():
                        best[name][k] = value[k].detach()
                else:
                    since[k] += 1
        if bool((since >= recipe.patience).all()):
            break
    return best
