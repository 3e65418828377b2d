"""Banks as files: where they lie, what their cards say and which bytes they are, without loading torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from usam.errors import HeadError

FORMAT = "masksieve-heads-1"


def read_card(path: Path) -> dict[str, Any]:
    """The JSON card of a bank.

    Raises: HeadError if it is missing or no card.
    """
    card_path = path.with_suffix(".json")
    try:
        card = json.loads(card_path.read_text())
    except (OSError, ValueError) as error:
        raise HeadError(f"a card at {card_path}", type(error).__name__, "copy the bank's two files again") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise HeadError(f"a card of format {FORMAT} at {card_path}", repr(found), "train or import the bank again")
    return card


def stacker_path(path: Path) -> Path:
    """Where the stacker of a bank lies: beside it."""
    return path.with_name(f"{path.stem}-stacker.safetensors")


def bank_path_for(model_sha256: str, search_dirs: Iterable[Path]) -> Path | None:
    """The bank installed for a model: the first card, by folder then by name, that carries the model's checksum.

    Args:    model_sha256: checksum of the model's weights. search_dirs: folders; missing ones are passed over.
    Returns: the safetensors file, or None if there is none.
    """
    for folder in search_dirs:
        for card_path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            path = card_path.with_suffix(".safetensors")
            if not path.is_file():
                continue
            try:
                card = read_card(path)
            except HeadError:
                continue
            if card.get("model_sha256") == model_sha256:
                return path
    return None


def install_path(model_name: str, model_sha256: str, folder: Path) -> Path:
    """Where a model's bank goes in a folder: found by `bank_path_for`, and no model overwrites another's."""
    return folder / f"{model_name}-heads-{model_sha256[:12]}.safetensors"


def bank_files_sha256(path: Path) -> str:
    """Checksum of all that turns tokens into a score, by the bytes of the files: heads, and their stacker if any.

    Not that of `weights.bank_sha256`, which is of the numbers; either changes when the other does.

    Raises: HeadError if the bank has no card or is damaged.
    """
    card = read_card(path)
    try:
        found = [file_sha256(path)]
        stacker = stacker_path(path)
        if stacker.with_suffix(".json").is_file():
            found += [file_sha256(stacker), file_sha256(stacker.with_suffix(".json"))]
    except OSError as error:
        raise HeadError(f"a bank in {path}", f"{type(error).__name__}: {error}", "copy the bank again") from error
    wanted = card.get("weights_sha256")
    if wanted not in (None, found[0]):
        raise HeadError(f"weights {str(wanted)[:12]} in {path}", found[0][:12], "copy the bank again")
    parts = [card.get("names"), card.get("mask_token_offset"), card.get("model_name"), *found]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
