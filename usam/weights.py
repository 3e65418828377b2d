"""Banks on disk: safetensors beside a JSON card, keyed by the checksum of the model they belong to."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from usam.bank_files import FORMAT, file_sha256, read_card, stacker_path
from usam.errors import HeadError
from usam.heads import HeadBank, HeadCard
from usam.targets import HEADS

_LOG = logging.getLogger(__name__)


def save_bank(bank: HeadBank, path: Path) -> Path:
    """Write `path` (safetensors) and its card (same stem, .json); the card last, so half a bank is never found.

    Its stacker goes beside it; one that lies there for other heads is removed.

    Args:    bank: the heads. path: the safetensors file; its folder is made.
    Returns: the path.
    """
    path = path.with_suffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{m}.{key}": value.cpu() for m, state in enumerate(bank.states()) for key, value in state.items()}
    card_path = path.with_suffix(".json")
    card_path.unlink(missing_ok=True)
    stacker_path(path).with_suffix(".json").unlink(missing_ok=True)
    stacker_path(path).unlink(missing_ok=True)
    if bank.stacker is not None:
        from usam.stacker import save_stacker

        save_stacker(bank.stacker, stacker_path(path))
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata={"format": FORMAT})  # two keys would be written in random order
    facts = {"format": FORMAT, "width": bank.width, "names": list(bank.names), "weights_sha256": file_sha256(part)}
    part.chmod(0o644)  # safetensors writes for its owner alone
    part.replace(path)
    part = card_path.with_name(card_path.name + ".part")
    part.write_text(json.dumps(facts | asdict(bank.card), indent=1, sort_keys=True) + "\n")
    part.replace(card_path)
    return path


def load_bank(path: Path, *, model_sha256: str | None = None, width: int | None = None) -> HeadBank:
    """Read a bank, refusing one that belongs to another model.

    Args:
        path: the safetensors file; its card lies beside it.
        model_sha256: checksum of the model's weights; None skips the check.
        width: the tokens' width 2d; None skips the check.
    Returns: the bank, on the CPU.
    Raises:  HeadError for a missing, damaged or foreign bank, or a stacker beside it that was made for other heads.
    """
    card = read_card(path)
    if model_sha256 is not None and card.get("model_sha256") != model_sha256:
        raise HeadError(
            f"heads made for the model {model_sha256[:12]}",
            f"heads of {card.get('model_name')} {str(card.get('model_sha256'))[:12]} in {path.name}",
            "fit heads to this model with `masksieve usam fit`",
        )
    if width is not None and card.get("width") != width:
        raise HeadError(
            f"heads of width {width}", f"width {card.get('width')} in {path.name}", "use this model's own bank"
        )
    try:
        found, wanted = file_sha256(path), card.get("weights_sha256")
        if wanted not in (None, found):
            raise HeadError(f"weights {str(wanted)[:12]} in {path}", found[:12], "copy the bank again")
        tensors = load_file(path)
        states: list[dict[str, Tensor]] = [{} for _ in card["names"]]
        for key, value in tensors.items():
            number, name = key.split(".", 1)
            states[int(number)][name] = value
        head_card = HeadCard(
            model_name=card["model_name"],
            model_sha256=card["model_sha256"],
            mask_token_offset=card["mask_token_offset"],
            recipe=card["recipe"],
            heldout=card["heldout"],
        )
    except (OSError, SafetensorError, KeyError, IndexError, ValueError) as error:
        raise HeadError(f"a bank in {path}", f"{type(error).__name__}: {error}", "copy the bank again") from error
    bank = HeadBank(card["names"], states, head_card)
    if stacker_path(path).with_suffix(".json").is_file():
        from usam.stacker import load_stacker

        bank.stacker = load_stacker(stacker_path(path), heads_sha256=heads_sha256(bank))
    return bank


def bank_sha256(bank: HeadBank) -> str:
    """Checksum of all that turns tokens into a score: the heads, and their stacker if they have one."""
    if bank.stacker is None:
        return heads_sha256(bank)
    return hashlib.sha256(f"{heads_sha256(bank)} {bank.stacker.sha256()}".encode()).hexdigest()


def heads_sha256(bank: HeadBank) -> str:
    """Checksum of what the heads compute: names, weights, token offset, and the model that names their score."""
    digest = hashlib.sha256(repr((bank.names, bank.mask_token_offset, bank.card.model_name)).encode())
    for state in bank.states():
        for name in sorted(state):
            digest.update(state[name].detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def import_published(folder: Path, card: HeadCard) -> HeadBank:
    """Read published-style heads: one folder per head holding `model.pth`, loaded with `weights_only=True`.

    Args:
        folder: holds `<head>/model.pth`; folders that are not named after a head are passed over.
        card: origin; published heads have `mask_token_offset=0`.
    Returns: a bank of every head found.
    Raises:  HeadError if there is none, or one is not a plain state dict.
    """
    names, states = [], []
    for name in HEADS:
        path = folder / name / "model.pth"
        if not path.is_file():
            continue
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged or a pickled-object file
            raise HeadError(
                f"a plain state dict in {path}", type(error).__name__, "export it as a state dict"
            ) from error
        if not isinstance(state, dict):
            raise HeadError(f"a state dict in {path}", type(state).__name__, "export it as a state dict")
        names.append(name)
        states.append({key: value for key, value in state.items() if isinstance(value, Tensor)})
    if not names:
        raise HeadError(
            f"folders like {folder}/iou_large/model.pth", "none", f"name folders after heads: {', '.join(HEADS)}"
        )
    _LOG.info("imported heads %s from %s", ", ".join(names), folder)
    return HeadBank(names, states, card)
