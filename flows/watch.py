"""The flow that watches a certificate: audited masks and the mix of sources, as often as it is scheduled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import artifacts
from flows.open_flow import open_flow
from pipeline.audits import Verdicts
from pipeline.review.verdicts import answers_as_verdicts
from pipeline.settings import load_settings, refuse_secrets
from pipeline.storage.objects import ObjectStore
from pipeline.storage.secrets import masked
from pipeline.watch import Options, picture_key, the_certificate
from pipeline.watch import watch as watch_certificate


@open_flow(name="watch", flow_run_name="watch {out}", validate_parameters=False)
def watch(
    out: str,
    audits: str | None = None,
    *,
    certificate: str | None = None,
    config: str | None = None,
    overrides: dict[str, Any] | None = None,
    alpha: float = Options.alpha,
    batch_videos: int = Options.batch_videos,
    patience_days: float = Options.patience_days,
) -> State[dict[str, Any]]:
    """Hold audits and new videos against a certificate; it is voided by what speaks against it.

    Args:
        out: folder or s3:// prefix of the labels.
        audits: verdicts as Parquet on the worker, a file or a folder; `answers` for those of the output itself; None:
            only the mix is looked at.
        certificate: its id; the newest that is not void if None.
        config, overrides: how the store is reached; no secrets.
        alpha, batch_videos, patience_days: see `pipeline.watch.Options`.
    Returns: the certificate, its e-value, how many videos were judged and wait, and why it is void; a Failed state if
        it is.
    """
    refuse_secrets(overrides)
    settings = load_settings(config, overrides)
    store = ObjectStore(out, settings.storage)
    verdicts = None
    if audits is not None:
        with answers_as_verdicts(store, Path(audits)) as path:
            verdicts = Verdicts(path)
    options = Options(alpha, batch_videos, patience_days)
    watched = watch_certificate(store, the_certificate(store, certificate), verdicts, options)
    found = {
        "certificate": watched.certificate.id, "void": watched.void, "e_value": watched.e_value,
        "judged": len(watched.e_values), "waiting": watched.waiting, "looks": len(watched.record.looks),
    }  # fmt: skip
    where = masked(store.uri(picture_key(watched.certificate.id)))
    lines = [{"watch": name, "value": value} for name, value in found.items()]
    artifacts.table(lines, "watch", f"`{masked(out)}`: {watched.certificate.promise}; picture: `{where}`")
    message = f"void: {watched.void}" if watched.void else f"holds so far, e-value {watched.e_value:.3g}"
    get_run_logger().info("certificate %s %s", watched.certificate.id, message)
    return Failed(message=message, data=found) if watched.void else Completed(message=message, data=found)
