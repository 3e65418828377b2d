"""`masksieve calibrate`: thresholds whose promise is certified by truth, as a certificate and a policy to retune by."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.markup import escape

from pipeline.cli.console import FAILED, OK, CallError, notices, plain_table, reading_the_call, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.output import existing_output
from pipeline.cli.progress import Counter
from pipeline.cli.summary import counted, percent

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.calibrate import Calibrated
    from pipeline.certificate_parts import ErrorRate, MeanIou
    from pipeline.policy import Policy

STYLES = {"certified": "green", "over_budget": "yellow", "not_certified": "bold red"}


class Estimand(StrEnum):
    """What counts alike."""

    rows = "rows"
    videos = "videos"


class Test(StrEnum):
    """How a threshold is tested."""

    clustered = "clustered"
    betting = "betting"


class Unit(StrEnum):
    """What people's time is counted in."""

    stretches = "stretches"
    rows = "rows"


def calibrate(
    manifest: Annotated[
        str, typer.Argument(metavar="MANIFEST", help="The --out of `masksieve label`.", show_default=False)
    ],
    truth: Annotated[
        str,
        typer.Option(
            help="COCO JSON, Parquet (IoU, masks or verdicts), a folder of id maps; or the word: answers.",
            show_default=False,
        ),
    ],
    at_most: Annotated[
        float | None,
        typer.Option(help="Promise: at most this share of accepted masks is bad.", show_default=False),
    ] = None,
    bad_iou: Annotated[float, typer.Option(help="A mask with a lower true IoU is bad.")] = 0.5,
    mean_iou: Annotated[
        float | None,
        typer.Option(help="Promise instead: accepted masks have at least this mean IoU.", show_default=False),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Probability that all groups keep the promise.")] = 0.9,
    estimand: Annotated[Estimand, typer.Option(help="What counts alike among the accepted.")] = Estimand.rows,
    by: Annotated[
        str, typer.Option(help="Thresholds of their own by source, label, model; comma-separated.", show_default=False)
    ] = "",
    min_videos: Annotated[int, typer.Option(min=1, help="Groups with fewer labelled videos share a threshold.")] = 100,
    review_budget: Annotated[
        float | None, typer.Option(help="What people can look at a day; the overflow is held.", show_default=False)
    ] = None,
    budget_unit: Annotated[Unit, typer.Option(help="Of the budget.")] = Unit.stretches,
    videos_per_day: Annotated[
        float | None, typer.Option(help="For the review load.", show_default="as were labelled so far")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Rules to start from, in YAML.", show_default="policy of the settings")
    ] = None,
    valid_days: Annotated[float, typer.Option(help="The certificate ends after so many days.")] = 90,
    map_share: Annotated[float, typer.Option(help="Share of the labelled videos for the map to IoU.")] = 0.1,
    method: Annotated[
        Test, typer.Option(help="clustered: measured to hold; betting: proven, takes more videos.")
    ] = Test.clustered,
    start_coverage: Annotated[float, typer.Option(help="Coverage at which the walk starts; choose it first.")] = 0.2,
    max_rows_per_video: Annotated[
        int | None, typer.Option(min=1, help="More rows of a video count as this many.", show_default="99th percentile")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option("--drop", help="Only videos first seen in it, each certified apart; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The policy to write; its picture lies beside.")] = Path(
        "policy.yaml"
    ),
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Find the largest thresholds whose promise holds, with a certificate that says so and a policy to retune by.

    Exits with 1 if the truth was not enough to certify any.
    """
    from pipeline.calibrate import calibrate as calibrated
    from pipeline.calibrate_request import Request
    from pipeline.policy import load_policy
    from pipeline.render.reliability import draw_reliability
    from pipeline.review.verdicts import answers_as_verdicts
    from pipeline.truth import open_truth

    settings = make_settings(config, set_)
    promise = _promise(at_most, bad_iou, mean_iou)
    _check_shares(
        {"--confidence": confidence, "--start-coverage": start_coverage}, {"--map-share": map_share},
        {"--valid-days": valid_days, "--videos-per-day": videos_per_day},
    )  # fmt: skip
    store = existing_output(manifest, settings.storage)
    with reading_the_call(), answers_as_verdicts(store, Path(truth)) as known:
        request = Request(
            promise, load_policy(policy) if policy is not None else settings.policy, confidence, estimand.value,
            tuple(one.strip() for one in by.split(",") if one.strip()), min_videos, review_budget, budget_unit.value,
            videos_per_day, valid_days, map_share, method.value, start_coverage, max_rows_per_video, tuple(drop or ()),
        )  # fmt: skip
        source = open_truth(truth if "://" in truth else known)
        try:
            out.expanduser().parent.mkdir(parents=True, exist_ok=True)
            if out.expanduser().is_dir():
                raise IsADirectoryError("a folder")
        except OSError as error:
            raise CallError(f"a writable file {out}", str(error), "choose another --out") from error
        with _Phases() as phases:
            found = calibrated(manifest, source, request, settings, progress=phases)
    certificate = found.certificate
    path = out.expanduser()
    path.write_text(_policy_yaml(found.policy, found))
    picture = draw_reliability(
        found.mapping, found.certifying, certificate.iou_map, path.with_suffix(".reliability.png"),
        title=f"{manifest}: predicted and true IoU",
    )  # fmt: skip
    if json_:
        typer.echo(json.dumps(_as_json(found, path, picture), indent=1))
    else:
        _tell(found, manifest, path, picture)
    raise typer.Exit(FAILED if certificate.status == "not_certified" else OK)


class _Phases(AbstractContextManager["_Phases"]):
    """A counter for each thing that is done in turn, as each has its own rate."""

    def __init__(self) -> None:
        self._stack, self._what = ExitStack(), ""
        self._count: Counter | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._count is None or what != self._what:
            self._stack.close()
            self._what, self._count = what, self._stack.enter_context(Counter(notices(), "calibrating", "videos"))
        self._count(what, done, total)

    def __exit__(self, *ended: object) -> None:
        self._stack.close()


def _promise(at_most: float | None, bad_iou: float, mean_iou: float | None) -> ErrorRate | MeanIou:
    """The promise that is asked for. Raises CallError for none, two, or one out of range."""
    from pydantic import ValidationError

    from pipeline.certificate_parts import ErrorRate, MeanIou

    if (at_most is None) == (mean_iou is None):
        got = "none" if at_most is None else "--at-most and --mean-iou"
        raise CallError("one promise", got, "give --at-most 0.05 (with --bad-iou 0.5), or --mean-iou 0.8")
    try:
        return MeanIou(at_least=mean_iou) if mean_iou is not None else ErrorRate(bad_iou=bad_iou, at_most=at_most or 0)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = {"at_least": "mean-iou"}.get(str(first["loc"][0]), str(first["loc"][0]).replace("_", "-"))
        raise CallError(f"--{name} as a share between 0 and 1", f"{first['input']:g}", "correct it") from None


def _check_shares(between: dict[str, float], from_zero: dict[str, float], positive: dict[str, float | None]) -> None:
    for name, value in {**between, **from_zero}.items():
        if not (0 <= value < 1 if name in from_zero else 0 < value < 1):
            raise CallError(f"{name} as a share between 0 and 1", f"{value:g}", "correct it")
    for name, days in positive.items():
        if days is not None and not 0 < days < 1e6:
            raise CallError(f"{name} above 0", f"{days:g}", "correct it")


def _policy_yaml(policy: Policy, found: Calibrated) -> str:
    """The policy as a settings file, which `masksieve retune --policy` and `masksieve label --config` take."""
    one = found.certificate
    head = (
        f"# {one.status}: {one.promise}, with {one.confidence:.0%} confidence, until {one.valid_until:%Y-%m-%d}\n"
        f"# certificate {one.id}; other rules or thresholds than these are uncertified\n"
    )
    return head + yaml.safe_dump({"policy": policy.model_dump(mode="json")}, sort_keys=False, allow_unicode=True)


def _tell(found: Calibrated, manifest: str, path: Path, picture: Path) -> None:
    """What was certified, for people."""
    one, console = found.certificate, results()
    words = one.status.replace("_", " ")
    counts = "every row counts alike" if one.estimand == "rows" else "every video counts alike"
    console.print(
        f"[{STYLES[one.status]}]{words}[/]: {one.promise}, {one.confidence:.0%} confidence, {counts}", soft_wrap=True
    )
    console.print(_table(found))
    mapped = one.iou_map.videos if one.iou_map else 0
    console.print(
        f"held against {counted(len({*found.certifying.video_n.tolist()}), 'video')}, at most "
        f"{counted(one.max_rows_per_video, 'row')} of each; the map to IoU is of {counted(mapped, 'other')}",
        soft_wrap=True,
    )
    console.print(_load(found), soft_wrap=True)
    for note in found.notes:
        console.print(f"[yellow]note[/]: {escape(note)}", soft_wrap=True)
    console.print(
        f"certificate {one.id} until {one.valid_until:%Y-%m-%d}: {escape(found.uri)}\npolicy: {escape(str(path))}, "
        f"picture: {escape(str(picture))}",
        soft_wrap=True,
    )
    if one.status != "not_certified":
        console.print(f"next: masksieve retune {escape(manifest)} --policy {escape(str(path))}", soft_wrap=True)


def _table(found: Calibrated) -> Table:
    """One line per group."""
    table = plain_table()
    table.add_column("group", overflow="fold")
    for heading in ("threshold", "proven", "observed", "bound", "coverage", "oracle", "absent", "videos", "rows"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups = [one for one in found.certificate.groups if one.videos or len(found.certificate.groups) == 1]
    for one in groups:
        several = len(groups) > 1
        table.add_row(
            "all others" if several and one.match.anything else escape(str(one.match)),
            *("none" if value is None else f"{value:.4f}" for value in (one.threshold, one.proven)),
            percent(one.observed), percent(one.bound), percent(one.coverage), percent(one.oracle_coverage),
            percent(one.absent_share), f"{one.videos:,}", f"{one.rows:,}",
        )  # fmt: skip
    return table


def _load(found: Calibrated) -> str:
    """The review load, and whether it fits."""
    review, videos = found.certificate.review, max(found.pool.videos, 1)
    if review.stretches_per_day is None or review.rows_per_day is None:
        per_100 = (100 * found.load.stretches / videos, 100 * found.load.rows / videos)
        return (
            f"review load: {per_100[0]:,.0f} stretches ({per_100[1]:,.0f} rows) per 100 videos; a day's load by "
            "--videos-per-day"
        )
    load = f"review load: {review.stretches_per_day:,.1f} stretches ({review.rows_per_day:,.0f} rows) a day"
    if review.budget_per_day is None:
        return load
    load += f", budget {review.budget_per_day:g} {review.budget_unit}"
    if found.certificate.status != "over_budget":
        return load
    held, most = found.policy.hold_above_uncertainty, found.policy.review_stretches_per_video
    parts = [] if held is None else [f"what is above {held:g} is held"]
    parts += [] if most is None else [f"people see at most {counted(most, 'stretch').replace('hs', 'hes')} of a video"]
    return f"{load}; to fit it, {' and '.join(parts)}"


def _as_json(found: Calibrated, path: Path, picture: Path) -> dict[str, object]:
    return {
        "certificate": found.certificate.model_dump(mode="json", exclude={"truth": {"marks"}}),
        "uri": found.uri,
        "policy": str(path),
        "picture": str(picture),
        "load": {"videos": found.pool.videos, **found.load._asdict()},
        "notes": list(found.notes),
    }
