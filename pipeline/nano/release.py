"""Everything that follows from a trained model, in one command: weights, presence threshold, heads, cards.

`python -m pipeline.nano.release --checkpoint runs/nano/checkpoint.pt` rewrites `pipeline/nano/weights/`.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from pathlib import Path
from typing import Literal

from pipeline.checkpoints import model_spec
from pipeline.checksum import file_sha256
from pipeline.nano.clips import DEFAULT_MIX, render_clip
from pipeline.nano.export import MIN_AREA_PX, export, open_weights, over_clips, worker_model
from pipeline.nano.follow import first_frame_prompts, session_on_clip
from usam.harvest import Rows, TruthClip, harvest
from usam.train import fit_tracked
from usam.warm import score_head_state
from usam.weights import save_bank

log = logging.getLogger(__name__)

WEIGHTS = Path(__file__).parent / "weights"
HEADS_FIRST_SEED = 200_000_000


def harvest_clip(seed: int) -> Rows | None:
    """Rows of one clip for training heads; clicks on even seeds, boxes on odd ones. None if nothing is prompted."""
    clip = render_clip(seed)
    kind: Literal["click", "box"] = "box" if seed % 2 else "click"
    prompts = first_frame_prompts(clip, kind, MIN_AREA_PX)
    if prompts is None:
        return None
    masks = session_on_clip(worker_model(), clip, prompts, keep_candidates=False, keep_tokens=True)
    return harvest([TruthClip(str(seed), masks, lambda frame, object_id: clip.ids_thw[frame] == object_id)])


def fit_heads(config: str, weights: Path, clips: int, folder: Path) -> Path:
    """Harvest fresh clips with the exported model and train `iou_tracked` on them.

    Args:
        config, weights: of the model.
        clips: number of clips, seeds from `HEADS_FIRST_SEED` on: in no other set.
        folder: where harvest and finished ensemble members are kept, so that a crash loses little.
    Returns: the bank's file.
    """
    sha256 = file_sha256(weights)
    kept = folder / f"harvest-{sha256[:12]}-{clips}.npz"
    if kept.exists():
        rows = Rows.load(kept)
    else:
        seeds = range(HEADS_FIRST_SEED, HEADS_FIRST_SEED + clips)
        parts = over_clips(harvest_clip, seeds, config, weights)
        rows = Rows.concat([part for part in parts if part is not None])
        rows.save(kept)
    log.info("heads: %d rows of %d clips", len(rows), clips)
    bank = fit_tracked(
        rows,
        config,
        sha256,
        start=score_head_state(open_weights(config, weights)),
        checkpoint_dir=folder / "heads",
        provenance={"clips": clips, "first_seed": HEADS_FIRST_SEED, "generator": "pipeline.nano.clips", "frames": 24},
    )
    return save_bank(bank, weights.with_name(f"{config}-heads.safetensors"))


def pin(config: str, sha256: str) -> None:
    """Write the weights' checksum into the model's configuration, which every load verifies."""
    path = model_spec(config).config
    text = re.sub(r"(?m)^sha256: .*\n", "", path.read_text())
    path.write_text(re.sub(r"(?m)^model:", f"sha256: {sha256}\nmodel:", text, count=1))


def main() -> None:
    """Export, fit, write cards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/nano/checkpoint.pt"))
    parser.add_argument("--config", default="sam2_nano")
    parser.add_argument("--presence-clips", type=int, default=50)
    parser.add_argument("--head-clips", type=int, default=600)
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
    bank = fit_heads(args.config, weights, args.head_clips, args.checkpoint.parent)
    log.info("wrote %s and %s", weights, bank)


if __name__ == "__main__":
    main()
