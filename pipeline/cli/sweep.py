"""`masksieve sweep`: what each threshold accepts, costs and, with truth, risks; as a table, CSV, picture and page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline.cli.console import CallError, notices, plain_table, reading_the_call, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.progress import Counter
from pipeline.cli.summary import counted, percent

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.certificate import Certificate, Evidence
    from pipeline.policy import Policy
    from pipeline.render.sweep_crops import Crop
    from pipeline.sweep import Sweep
    from pipeline.sweep_examples import Example
    from pipeline.sweep_input import Labels
    from pipeline.sweep_truth import Truth

MOST_GROUPS = 12
MOST_LEFT_OUT = 5


def sweep(
    manifest: Annotated[
        str,
        typer.Argument(
            metavar="MANIFEST",
            help="The --out of `masksieve label`, or a Parquet file or folder of its labels; local or s3://.",
            show_default=False,
        ),
    ],
    truth: Annotated[
        str | None,
        typer.Option(help="Truth of some videos: a COCO JSON, a folder of id maps, or Parquet.", show_default=False),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A policy in YAML.", show_default="what the labels were decided by")
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", help="Only videos first seen in this drop; more than one may be given."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for page, picture and CSV.")] = Path("sweep"),
    bad_iou: Annotated[float, typer.Option(min=0.0, max=1.0, help="A mask with a lower true IoU is bad.")] = 0.5,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals of the risk.")] = 0.95,
    no_examples: Annotated[bool, typer.Option("--no-examples", help="No example masks; no video is read.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Show coverage, review load and, with truth, risk at every threshold: a page with a slider, a picture, a CSV."""
    from pipeline.errors import MasksieveError, UnavailableError
    from pipeline.policy import load_policy
    from pipeline.render.sweep_crops import draw_crops
    from pipeline.sweep import sweep as swept
    from pipeline.sweep_input import days_of, find_labels, policy_of
    from pipeline.sweep_truth import load_truth

    settings = make_settings(config, set_)
    chosen = None
    if policy is not None:
        with reading_the_call():
            chosen = load_policy(policy)
    console = notices()
    try:
        labels = find_labels(manifest, settings.storage, drop or ())
        rules = chosen or policy_of(labels) or settings.policy
        certificate = _certificate(labels, rules)
        with Counter(console, "truth of", "videos") as count:
            known = None if truth is None else load_truth(truth, labels, progress=count)
        with Counter(console, "sweeping", "files") as count:
            found = swept(
                labels, rules, truth=known, bad_iou=bad_iou, confidence=confidence, days=days_of(labels),
                also=() if certificate is None else certificate.groups[-1].passed, progress=count,
            )  # fmt: skip
    except UnavailableError:
        raise
    except MasksieveError as error:
        raise CallError(error.expected, error.got, error.next_step) from error
    evidence, passed = _evidence(found, labels, certificate)
    known_iou = _with_iou(found, known)
    with Counter(console, "examples from", "videos") as count:
        crops = (
            []
            if no_examples
            else draw_crops(known_iou, found.told.tolist(), _bin(found), settings.decode, progress=count)
        )
    files = _write(found, crops, evidence, passed, out, manifest)
    if json_:
        typer.echo(json.dumps(_as_json(found, evidence, manifest, files), indent=1))
    else:
        _tell(found, evidence, files)


def _certificate(labels: Labels, policy: Policy) -> Certificate | None:
    """The one that the policy names, if the output has it."""
    from pipeline.certificate import CertificateError, read_certificate

    if not labels.output or policy.certificate is None:
        return None
    with suppress(CertificateError):
        return read_certificate(labels.store, policy.certificate)
    return None


def _evidence(found: Sweep, labels: Labels, certificate: Certificate | None) -> tuple[Evidence, list[float]]:
    """What stands behind the policy for all that was swept, and other thresholds that the certificate passed."""
    from pipeline.certificate import evidence, void_reason

    void = None if certificate is None else void_reason(labels.store, certificate.id)

    def of(policy: Policy) -> Evidence:
        return min(
            (evidence(policy, certificate, void, maker) for maker in found.makers), key=lambda one: one.certified
        )

    now = of(found.policy)
    if not now.certified or found.policy.groups:
        return now, []
    told = found.thresholds_k[found.told].tolist()
    return now, [at for at in told if of(found.policy.model_copy(update={"max_uncertainty": at})).certified]


def _bin(found: Sweep) -> int:
    """Where the policy's own threshold is in the grid."""
    return int((found.thresholds_k[:-1] < found.policy.max_uncertainty).sum())


def _with_iou(found: Sweep, known: Truth | None) -> list[Example]:
    """The examples, with what the truth says of them."""
    from pipeline.sweep_truth import iou_of

    return [
        one._replace(iou=iou_of(known or {}, one.video_id, one.frame_index, one.object_id)) for one in found.examples
    ]


def _write(
    found: Sweep, crops: Sequence[Crop], evidence: Evidence, passed: list[float], out: Path, manifest: str
) -> list[Path]:
    """CSV of thresholds and of groups, picture and page. The page comes last."""
    from pipeline.render.sweep_page import draw_page
    from pipeline.render.sweep_plot import draw_sweep
    from pipeline.sweep_figures import as_csv, by_group, columns, group_columns, told

    title = manifest.rstrip("/")
    names = columns(found)
    texts = {
        "sweep.csv": as_csv(told(found), names),
        "groups.csv": as_csv(by_group(found), group_columns(found)),
        "sweep.html": draw_page(found, crops, evidence, title=title, passed=passed),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        draw_sweep(found, out / "sweep.png", evidence=evidence.text, title=title)
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CallError(f"a writable folder at {out}", str(error.strerror), "choose another --out") from error
    return [out / name for name in ("sweep.html", "sweep.png", "sweep.csv", "groups.csv")]


def _as_json(found: Sweep, evidence: Evidence, manifest: str, files: Sequence[Path]) -> dict[str, Any]:
    from pipeline.sweep_figures import by_group, current, told

    counts, truth = found.overall_sums.counts, found.overall_sums.truth
    return {
        "manifest": manifest, "policy": found.policy.model_dump(mode="json"), "policy_id": found.policy.policy_id,
        "certified": evidence.certified, "evidence": evidence.text, "bad_iou": found.bad_iou,
        "confidence": found.confidence, "videos": found.videos, "frames": found.frames, "days": found.days,
        "rows": {name: counts[name] for name in ("rows", "predicted", "held", "unscored", "always")},
        "truth": None if truth is None else {"rows": truth.rows, "videos": truth.videos},
        "current": current(found), "thresholds": told(found), "groups": by_group(found),
        "left_out": [{"file": file, "reason": reason} for file, reason in found.left_out],
        "files": [str(file) for file in files],
    }  # fmt: skip


def _tell(found: Sweep, evidence: Evidence, files: Sequence[Path]) -> None:
    """The table of a dozen thresholds, of groups, and what they rest on."""
    from pipeline.sweep_figures import a_dozen, by_group, current

    console, now = results(), current(found)
    console.print(_thresholds(found, a_dozen(found)))
    groups = by_group(found)
    if len(groups) > 1:
        console.print()
        console.print(_groups(found, groups[:MOST_GROUPS]))
        if len(groups) > MOST_GROUPS:
            console.print(f"and {len(groups) - MOST_GROUPS:,} more groups in groups.csv")
    console.print()
    at = "thresholds by group" if now["threshold"] is None else f"threshold {now['threshold']:g}"
    console.print(f"policy {escape(found.policy.name)}, {at}: coverage {percent(now['coverage'])} of "
                  f"{found.overall.predicted:,} predicted masks; {escape(evidence.text)}", soft_wrap=True)  # fmt: skip
    for line in _remarks(found, now):
        console.print(line, soft_wrap=True)
    for file in files:
        console.print(f"  {escape(str(file))}", soft_wrap=True)


def _remarks(found: Sweep, now: dict[str, Any]) -> Iterator[str]:
    """What one has to know of the figures."""
    accepted = found.overall.accepted_k[:-1]
    truth = found.overall_sums.truth
    if truth is None:
        yield "risk is [yellow]unknown[/] without truth: give --truth"
    else:
        yield (
            f"risk from {truth.rows:,} masks of {counted(truth.videos, 'video')} with truth; its intervals are over "
            "videos and pointwise, no certificate (`masksieve calibrate` makes one)"
        )
    if not accepted[-1]:
        yield "[yellow]no threshold accepts a mask[/]: other rules of the policy stop all of them"
    elif not now["accepted"]:
        yield "[yellow]the policy accepts no mask[/]"
    elif now["accepted"] == found.overall.predicted:
        yield "[yellow]the policy accepts every mask[/]: nothing is left for review"
    if len(found.policies) > 1:
        yield f"[yellow]mixed[/]: the labels were decided by {len(found.policies)} policies"
    for file, reason in found.left_out[:MOST_LEFT_OUT]:
        yield f"[yellow]left out[/] {escape(file)}: {escape(reason)}"
    if (more := len(found.left_out) - MOST_LEFT_OUT) > 0:
        yield f"[yellow]left out[/] {counted(more, 'more file')}"


def _thresholds(found: Sweep, rows: Sequence[dict[str, Any]]) -> Table:
    table = plain_table()
    table.add_column("threshold", no_wrap=True)
    _figure_columns(table, found)
    for row in rows:
        at = "by group" if row["threshold"] is None else f"{row['threshold']:g}"
        table.add_row(
            at + (" < policy" if row["current"] else ""), *_cells(found, row), style="bold" if row["current"] else ""
        )
    return table


def _groups(found: Sweep, rows: Sequence[dict[str, Any]]) -> Table:
    table = plain_table()
    told = [name for name in ("source", "label", "model") if len({row[name] for row in rows}) > 1]
    own = len({row["threshold"] for row in rows}) > 1
    for name in told:
        table.add_column(name, overflow="fold")
    risky = [f"IoU<{found.bad_iou:g}", f"{100 * found.confidence:g}%"] if found.overall.risk is not None else []
    for heading in ("masks", *(["threshold"] if own else []), "coverage", *risky, "stretches"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [escape(str(row[name] or "-")) for name in told] + [f"{row['predicted']:,}"]
        cells += ["none" if row["threshold"] is None else f"{row['threshold']:g}"] if own else []
        cells += [percent(row["coverage"]), *(_error(row) if risky else []), f"{row['review_stretches']:,}"]
        table.add_row(*cells)
    return table


def _figure_columns(table: Table, found: Sweep) -> None:
    headings = ["coverage", "review rows", "stretches/video", "/day" if found.days else "/1k frames"]
    if found.overall.risk is not None:
        level = f"{100 * found.confidence:g}%"
        headings[1:1] = [f"IoU<{found.bad_iou:g}", level, "mean IoU", level]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)


def _cells(found: Sweep, row: dict[str, Any]) -> list[str]:
    per_time = row["stretches_per_day" if found.days else "stretches_per_1000_frames"]
    cells = [
        percent(row["coverage"]),
        f"{row['review_rows']:,}",
        f"{row['stretches_per_video']:.2f}",
        f"{per_time or 0:,.1f}",
    ]
    if found.overall.risk is not None:
        cells[1:1] = [
            *_error(row),
            "-" if row["mean_iou"] is None else f"{row['mean_iou']:.3f}",
            "-" if row["iou_low"] is None else f"{row['iou_low']:.3f}-{row['iou_high']:.3f}",
        ]
    return cells


def _error(row: dict[str, Any]) -> list[str]:
    """The error rate and its interval, with one more decimal below 1%."""
    rate, low, high = row["error_rate"], row["error_low"], row["error_high"]
    digits = 2 if rate is not None and rate < 0.01 else 1
    between = "-" if low is None else f"{100 * low:.{digits}f}-{100 * high:.{digits}f}%"
    return ["-" if rate is None else f"{100 * rate:.{digits}f}%", between]
