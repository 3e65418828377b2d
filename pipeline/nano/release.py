"""From a training run to weights that ship: presence threshold, card, checksum in the configuration.

`python -m pipeline.nano.release --checkpoint runs/nano/checkpoint.pt` rewrites `pipeline/nano/weights/`.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from pathlib import Path

from pipeline.checkpoints import model_spec
from pipeline.checksum import file_sha256
from pipeline.nano.clips import DEFAULT_MIX
from pipeline.nano.export import export

log = logging.getLogger(__name__)

WEIGHTS = Path(__file__).parent / "weights"


def pin(config: str, sha256: str) -> None:
    """Write the weights' checksum into the model's configuration, which every load verifies."""
    path = model_spec(config).config
    text = re.sub(r"(?m)^sha256: .*\n", "", path.read_text())
    path.write_text(re.sub(r"(?m)^model:", f"sha256: {sha256}\nmodel:", text, count=1))


def main() -> None:
    """Export, write the card, pin the checksum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/nano/checkpoint.pt"))
    parser.add_argument("--config", default="sam2_nano")
    parser.add_argument("--presence-clips", type=int, default=50)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    weights = WEIGHTS / f"{args.config}.safetensors"
    facts = export(args.checkpoint, weights, args.config, args.presence_clips)
    recipe = args.checkpoint.with_name("recipe.json")
    card = {
        "model": args.config,
        "sha256": file_sha256(weights),
        "training": {
            **facts,
            "recipe": json.loads(recipe.read_text()) if recipe.exists() else None,
            "mix": DEFAULT_MIX,
        },
        "made_by": [
            f"python -m pipeline.nano.train --config {args.config}",
            f"python -m pipeline.nano.release --config {args.config}",
        ],
        "exam": "benchmarks/heldout.yaml, figures in docs/model-card.md",
    }
    weights.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    pin(args.config, str(card["sha256"]))
    log.info("wrote %s; its heads come next: pipeline.nano.polish, pipeline.nano.heads", weights)


if __name__ == "__main__":
    main()
