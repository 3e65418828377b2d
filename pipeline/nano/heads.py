"""Trains the heads and the stacker that ship with an embedded model, from a harvest of fresh clips.

`python -m pipeline.nano.heads --training runs/usam/training` rewrites the bank beside the weights.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pipeline.checkpoints import model_spec
from pipeline.models import weights_path
from pipeline.nano.export import open_weights
from usam.fit_bank import fit_bank
from usam.heads import HeadBank
from usam.shard import Shard
from usam.stack import add_stacker
from usam.warm import score_head_state
from usam.weights import save_bank

log = logging.getLogger(__name__)


def train_heads(shard: Shard, config: str, weights: Path, work: Path) -> HeadBank:
    """Every head that the harvest has targets for, and the stacker.

    Args:
        shard: tracked frames of these weights.
        config, weights: of the model; its own score is where the IoU heads start.
        work: where finished members are kept.
    Returns: the bank, with its stacker if that is ahead on held-out videos.
    """
    start = score_head_state(open_weights(config, weights))
    return add_stacker(fit_bank([shard], start=start, checkpoint_dir=work), [shard])


def main() -> None:
    """Train and write the bank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True, help="a tracked harvest of the shipped weights")
    parser.add_argument("--config", default="sam2_nano")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    weights = weights_path(model_spec(args.config))
    bank = train_heads(Shard.open(args.training), args.config, weights, args.training / "members")
    path = save_bank(bank, weights.with_name(f"{args.config}-heads.safetensors"))
    log.info("wrote %s: %s, stacker %s", path, ", ".join(bank.heads), "yes" if bank.stacker else "no")


if __name__ == "__main__":
    main()
