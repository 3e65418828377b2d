"""`masksieve watch`: audited masks and new videos are held against a certificate; what speaks against it voids it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline.cli.console import FAILED, OK, CallError, notices, reading_the_call, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.output import Out, existing_output
from pipeline.cli.progress import Counter
from pipeline.cli.summary import counted, percent

if TYPE_CHECKING:
    from pipeline.storage.objects import ObjectStore
    from pipeline.watch import Watched


def watch(
    out: Out,
    audits: Annotated[
        Path | None,
        typer.Option(
            "--audits",
            help="Verdicts as Parquet (review_id, or video_id, frame_index, object_id; verdict), or: answers.",
        ),
    ] = None,
    certificate: Annotated[
        str | None, typer.Option("--certificate", help="Its id.", show_default="the newest that is not void")
    ] = None,
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.5, help="Chance of a false alarm, of each test.")] = 0.05,
    batch: Annotated[int, typer.Option(min=10, help="Videos in one look at the mix.")] = 50,
    patience: Annotated[
        float, typer.Option(metavar="DAYS", min=0.0, help="After this, masks that nobody judged count as right.")
    ] = 14.0,
    config: Config = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print where it stands as JSON.")] = False,
) -> None:
    """Hold what people said of audited masks, and what new videos look like, against a certificate.

    Call it as often as you like. Exit code 1 says that the certificate is void.
    """
    from pipeline.audits import AuditError, Verdicts
    from pipeline.certificate import CertificateError
    from pipeline.review.answers import ReviewError
    from pipeline.review.verdicts import answers_as_verdicts
    from pipeline.watch import Options, the_certificate
    from pipeline.watch import watch as job
    from pipeline.watch_record import WatchError

    settings = make_settings(config, set_)
    store = existing_output(out, settings.storage)
    verdicts = None
    if audits is not None:
        with reading_the_call(AuditError), reading_the_call(ReviewError), answers_as_verdicts(store, audits) as path:
            if not path.expanduser().exists():
                raise CallError(f"verdicts at {audits}", "nothing", "check the path")
            verdicts = Verdicts(path.expanduser())
    with reading_the_call(CertificateError), reading_the_call(WatchError):
        watched_one = the_certificate(store, certificate)
    with (
        Counter(notices(), "reading", "videos") as progress,
        reading_the_call(WatchError),
        reading_the_call(AuditError),
    ):
        watched = job(store, watched_one, verdicts, Options(alpha, batch, patience), progress=progress)
    if json_:
        typer.echo(json.dumps(as_json(watched), indent=1))
    else:
        _tell(store, watched)
    raise typer.Exit(OK if watched.void is None else FAILED)


def as_json(watched: Watched) -> dict[str, Any]:
    """Where a watch stands, for programs."""
    lost, rows = watched.record.judged
    looks = [look.model_dump(mode="json") for look in watched.record.looks]
    return {
        "certificate": watched.certificate.id,
        "void": watched.void,
        "audit": {
            "e_value": watched.e_value, "limit": 1 / watched.record.alpha, "videos": len(watched.e_values),
            "rows": rows, "lost": lost, "waiting": watched.waiting,
        },
        "mix": {"looks": looks, "pending": watched.pending},
        "others": watched.others,
        "notes": list(watched.notes),
    }  # fmt: skip


def _tell(store: ObjectStore, watched: Watched) -> None:
    from pipeline.watch import picture_key

    console, record = results(), watched.record
    lost, rows = record.judged
    name, promise = f"certificate {watched.certificate.id[:12]}", watched.certificate.promise
    if watched.void is None:
        console.print(f"[green]holds so far[/]: {name}, {promise}", soft_wrap=True)
    else:
        console.print(f"[bold red]void[/]: {name}, {promise}: {escape(watched.void)}", soft_wrap=True)
    share = percent(lost / rows) if rows else "-"
    so_far = f"{counted(len(watched.e_values), 'video')}, {rows:,.4g} judged masks, loss {share}"
    console.print(
        f"audit: e-value {watched.e_value:.3g} of {1 / record.alpha:g} after {so_far}; "
        f"{counted(watched.waiting, 'video')} waiting for verdicts",
        soft_wrap=True,
    )
    if record.looks:
        last = record.looks[-1]
        console.print(
            f"mix: {counted(len(record.looks), 'look')}, in the last one energy distance {last.distance:.2f}, p "
            f"{last.p:.2g} (limit {last.level:.2g}), furthest {last.further} ({last.by:+.1f} standard deviations)",
            soft_wrap=True,
        )
    console.print(f"mix: {counted(watched.pending, 'video')} of {record.batch_videos} for the next look")
    if watched.others:
        console.print(f"{counted(watched.others, 'video')} left alone, which the certificate does not cover")
    for note in watched.notes:
        console.print(f"[yellow]note[/]: {escape(note)}", soft_wrap=True)
    console.print(f"  {escape(store.uri(picture_key(watched.certificate.id)))}", soft_wrap=True)
