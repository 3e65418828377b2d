"""Which settings change facts; the others say where, when, and what is made of them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline import shots
from pipeline.checkpoints import verify
from pipeline.models import bank_folders
from pipeline.records import SCHEMA_VERSION, TOKENS_VERSION
from pipeline.settings import Settings
from usam.bank_files import bank_files_sha256, bank_path_for


def fact_settings(settings: Settings) -> dict[str, Any]:
    """Those that change the facts of every video, as JSON values."""
    return {
        **settings.propagate.model_dump(include={"reverse", "exact", "max_group", "on_cut"}),
        "cut_threshold": None if settings.propagate.on_cut == "ignore" else settings.propagate.cut_threshold,
        "cut_method": None if settings.propagate.on_cut == "ignore" else shots.METHOD,
        "precision": settings.model.precision,
        "candidates": settings.output.candidates,
        "tokens": settings.output.tokens and TOKENS_VERSION,
        "chunk_frames": settings.score.chunk_frames,  # a batch of another size rounds the heads' outputs otherwise
    }


def sampling_settings(settings: Settings) -> dict[str, Any]:
    """Those that say which frames are labelled."""
    return settings.decode.model_dump(include={"stride", "fps", "start_seconds", "end_seconds"})


def settings_digest(settings: Settings) -> str:
    """Hash of all that changes facts before anything is known of a video: settings, weights and heads. Loads no torch.

    How objects are found in a video without prompts is not in it (`settings.prompts.auto`).

    Raises: ModelError for a model that is unknown, not fetched or damaged; HeadError for a damaged bank.
    """
    model = verify(settings.model.name, settings.model.cache_dir)
    bank = settings.score.bank or bank_path_for(model.sha256, bank_folders(settings.model.cache_dir))
    parts = [
        SCHEMA_VERSION, fact_settings(settings), sampling_settings(settings),
        settings.decode.model_dump(include={"decoder", "on_damage"}),
        model.sha256, None if bank is None else bank_files_sha256(bank),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
