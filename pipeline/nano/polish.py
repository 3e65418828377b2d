"""Fits a trained model's own IoU predictor to fresh clips: what its masks are worth on the frames that it tracks.

`python -m pipeline.nano.polish --shard runs/usam/polishing` rewrites the weights; training saw its clips many times and
tracks a few frames, so the predictor that comes out of it is too sure of itself.
"""

from __future__ import annotations

import argparse
import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.checksum import file_sha256
from pipeline.nano.export import open_weights, write_weights
from usam.errors import HeadError
from usam.shard import Shard
from usam.train import agreement, split_videos

log = logging.getLogger(__name__)

PREFIX = "sam_mask_decoder.iou_prediction_head."


def polish(
    head: nn.Module, shard: Shard, *, lr: float = 1e-4, dropout: float = 0.1, patience: int = 8, seed: int = 0
) -> tuple[nn.Module, dict[str, Any]]:
    """Train the predictor on candidates' true IoU, decoder and tokens held fixed.

    Its three multimask outputs learn the squared error, on every row with a visible truth. The single-mask output has
    few rows and is held to what it said before. The epoch that is best on a fifth of the videos is kept.

    Args:
        head: `sam_mask_decoder.iou_prediction_head`.
        shard: tracked frames of the same model, with the IoU of all three candidates.
        lr, dropout, patience: of AdamW, on the IoU token, in epochs.
        seed: of the split, the order and the dropout.
    Returns: the new predictor, and figures on the held-out fifth: SAM2's score before and after.
    """
    torch.manual_seed(seed)
    token_nd = torch.from_numpy(np.array(shard.tokens_n5d[:, 0]))
    iou_n3 = torch.from_numpy(np.stack([shard.column(f"candidate_iou_{j}") for j in range(3)], 1))
    keep_n = shard.column("visible") & np.isfinite(iou_n3.numpy()).all(1)
    heldout_n = split_videos(shard.column("video_id"), 0.2, seed)
    train, stop = (torch.from_numpy(np.flatnonzero(keep_n & rows)) for rows in (~heldout_n, heldout_n))
    if not len(train) or not len(stop):
        raise HeadError("rows with a visible truth in several videos", "none", "harvest more clips")
    with torch.no_grad():
        before_n4: Tensor = head(token_nd)
    own, best, best_loss, since = copy.deepcopy(head).requires_grad_(True).train(), head, float("inf"), 0
    mean = {name: value.detach().clone() for name, value in own.state_dict().items()}
    optimizer = torch.optim.AdamW(own.parameters(), lr=lr, weight_decay=0.05)
    step = 0
    while since < patience:
        for rows in train[torch.randperm(len(train))].split(256):
            out_n4 = own(nn.functional.dropout(token_nd[rows], dropout))
            loss = ((out_n4[:, 1:] - iou_n3[rows]) ** 2).mean() + ((out_n4[:, 0] - before_n4[rows, 0]) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            for name, value in own.state_dict().items():
                mean[name].lerp_(value.detach(), 1 - min(0.99, step / (step + 10)))
        averaged = copy.deepcopy(head)
        averaged.load_state_dict(mean)
        with torch.no_grad():
            stop_loss = float(((averaged(token_nd[stop])[:, 1:] - iou_n3[stop]) ** 2).mean())
        if stop_loss < best_loss:
            best, best_loss, since = averaged, stop_loss, 0
        else:
            since += 1
    judged_n = heldout_n & keep_n & shard.column("predicted") & ~shard.column("prompted")
    figures = {name: _own_score(h, token_nd, shard, judged_n) for name, h in (("before", head), ("after", best))}
    return best.requires_grad_(False).eval(), figures


@torch.no_grad()
def _own_score(head: nn.Module, token_nd: Tensor, shard: Shard, rows_n: np.ndarray) -> dict[str, float]:
    """How the score of the mask that the predictor itself would choose agrees with that mask's IoU."""
    index = np.flatnonzero(rows_n)
    scores = head(token_nd[index])[:, 1:].numpy()
    chosen = scores.argmax(1)
    ious = np.stack([shard.column(f"candidate_iou_{j}") for j in range(3)], 1)[index, chosen]
    return {
        **agreement(scores.max(1), ious, shard.column("video_id")[index]),
        "mean_iou": round(float(ious.mean()), 4),
    }


def main() -> None:
    """Polish the weights of an embedded model in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", type=Path, required=True, help="a tracked harvest of these very weights")
    parser.add_argument("--config", default="sam2_nano")
    parser.add_argument("--weights", type=Path, required=True, help="read, and rewritten")
    parser.add_argument("--out", type=Path, help="write here instead")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    shard = Shard.open(args.shard)
    found = shard.plan.models[shard.plan.deployed]["sha256"]
    if found != file_sha256(args.weights):
        raise HeadError(f"a harvest of {args.weights}", f"one of {found[:12]}", "harvest with these weights")
    head, figures = polish(open_weights(args.config, args.weights).sam_mask_decoder.iou_prediction_head, shard)
    state = load_file(args.weights)
    state |= {f"{PREFIX}{name}": value for name, value in head.state_dict().items()}
    write_weights(state, args.out or args.weights)
    log.info("polished %s: %s", args.out or args.weights, figures)


if __name__ == "__main__":
    main()
