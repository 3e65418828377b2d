"""The flow that fits uncertainty heads to a model from reviewed rows or videos with truth, and installs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import get_run_logger

from flows import artifacts
from flows.open_flow import open_flow
from pipeline.device_slot import device_slot
from pipeline.heads import fit_heads
from pipeline.models import load_model
from pipeline.score import score_head
from pipeline.settings import load_settings, refuse_secrets


@open_flow(name="train", flow_run_name="train on {truth}", validate_parameters=False)
def train(
    truth: str,
    *,
    labels: str | None = None,
    model: str | None = None,
    config: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Fit heads as `masksieve usam fit` does; videos that are labelled afterwards are scored by them.

    Args:
        truth: a path on the worker: a folder of videos with prompts and truth, a data set, or with `labels` reviewed
            rows as Parquet; see `pipeline.heads.fit_heads`.
        labels: the output whose masks were reviewed, made with `output.tokens`.
        model: by name; the settings' own if None.
        config, overrides: the settings.
    Returns: where the bank lies on the worker, its heads, what a mask's score is from now on, and the figures on
        held-out videos. A run that was cut short goes on where it was.
    """
    refuse_secrets(overrides)
    settings = load_settings(config, {**(overrides or {}), **({"model.name": model} if model else {})})
    loaded = load_model(settings.model.name, device=settings.model.device, cache_dir=settings.model.cache_dir)
    logger = get_run_logger()
    told: set[str] = set()

    def progress(stage: str, name: str, done: int, total: int) -> None:
        if stage not in told:
            told.add(stage)
            logger.info("%s: %d to do", stage, total)

    with device_slot(settings)():
        path, bank = fit_heads(Path(truth).expanduser(), loaded, settings, labels=labels, progress=progress)
    rows = [
        {
            "head": head, "rows": group, "count": figures["rows"], "videos": figures["videos"],
            **{name: round(figures[name], 4) for name in ("pearson", "mae", "bias")},
        }
        for head, groups in bank.card.heldout.items()
        for group, figures in groups.items()
    ]  # fmt: skip
    score = score_head(bank)
    artifacts.table(rows, "train", f"Heads of `{loaded.name}` on held-out videos of `{truth}`; still uncertified")
    logger.info("installed %s for %s: %s", ", ".join(bank.heads), loaded.name, path)
    return {"path": str(path), "model": loaded.name, "heads": list(bank.heads), "score": score, "heldout": rows}
