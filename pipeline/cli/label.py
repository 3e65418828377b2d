"""`masksieve label`: videos in, Parquet pseudo-labels and a review list out; one failure never stops the others."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.markup import escape

from pipeline.cli.console import (
    INTERRUPTED,
    CallError,
    debug_asked,
    exit_code,
    notices,
    one_line,
    reading_the_call,
    results,
)
from pipeline.cli.progress import Board
from pipeline.cli.summary import as_json, evidence, summary_table
from pipeline.errors import MasksieveError, PromptError, SettingsError

if TYPE_CHECKING:
    from pipeline.drops import Wanted
    from pipeline.models import LoadedModel
    from pipeline.report import VideoReport
    from pipeline.settings import Settings

log = logging.getLogger(__name__)

Inputs = Annotated[
    list[str], typer.Argument(metavar="VIDEO...", help="Videos, folders, globs or s3:// URLs.", show_default=False)
]
Config = Annotated[str | None, typer.Option("--config", "-c", help="A settings file, or a shipped one by name.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, for example policy.max_uncertainty=0.2.")]


def label(
    inputs: Inputs,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or s3:// prefix for the labels.")] = "labels",
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompts of the one video, or a folder of STEM.prompts.json.", show_default="beside the video"
        ),
    ] = None,
    auto_prompts: Annotated[
        bool, typer.Option("--auto-prompts", help="Find objects in videos that have no prompts.")
    ] = False,
    config: Config = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A model by name; see `masksieve models`.")] = None,
    drop: Annotated[str | None, typer.Option(help="Name of the drop that the labels are filed under.")] = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Label videos: propagate their prompted masks, score each, write labels and a review list.

    clip.mp4 pairs with [bold]clip.prompts.json[/] beside it; without one it fails, or its objects are found with
    [bold]--auto-prompts[/]. A second run of the same work changes nothing.
    """
    from pipeline.backing import require_certificate
    from pipeline.checkpoints import model_spec
    from pipeline.drops import find_videos
    from pipeline.storage.objects import ObjectStore

    for name, value in (("--out", out), ("--model", model), *(("a video", one) for one in inputs)):
        if value is not None and not value.strip():  # an unset shell variable, most likely
            raise SettingsError(f"a value for {name}", "an empty word", "check the variable that it comes from")
    if auto_prompts:
        set_ = ["prompts.on_missing=auto", *(set_ or [])]
    settings = make_settings(config, set_, model=model)
    with reading_the_call():  # a mistake here is told before any video is looked at
        model_spec(settings.model.name)
        require_certificate(ObjectStore(out, settings.storage), settings.policy)
    if prompts and "://" not in prompts and not Path(prompts).expanduser().exists():
        raise CallError(f"prompts at {prompts}", "nothing", "check the path")
    with reading_the_call(PromptError):
        auto = settings.prompts.on_missing == "auto"
        wanted = find_videos(inputs, prompts=prompts, storage=settings.storage, without_prompts=auto)
    reports, interrupted = label_all(wanted, out, settings, drop=drop)
    if json_:
        typer.echo(json.dumps(as_json(reports, out, interrupted=interrupted), indent=1))
    else:
        tell(reports, out)
    if interrupted:
        notices().print(
            "interrupted: what is listed above is complete; the same command goes on with the running video, from its "
            "last checkpoint if it has one",
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(exit_code(wanted, failed=any(report.status == "failed" for report in reports)))


def make_settings(config: str | None, set_: list[str] | None, *, model: str | None = None) -> Settings:
    """Settings from the options that every labelling command shares.

    Args:
        config: a settings file or a shipped name.
        set_: "key=value" words, dotted keys, values read as YAML.
        model: shorthand for model.name.
    Raises: SettingsError if a word has no "=" or a setting is unknown.
    """
    from pipeline.settings import load_settings

    return load_settings(config, ({"model.name": model} if model else {}) | overrides_of(set_))


def overrides_of(set_: list[str] | None) -> dict[str, Any]:
    """The settings that "key=value" words give: dotted keys, values read as YAML.

    Raises: SettingsError if a word has no "=" or its value is no YAML.
    """
    overrides: dict[str, Any] = {}
    for word in set_ or []:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise SettingsError("--set key=value", repr(word), "write for example --set policy.max_uncertainty=0.2")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SettingsError(f"a YAML value for {key}", repr(value), "put it in quotes") from error
    return overrides


def label_all(
    wanted: list[Wanted], out: str, settings: Settings, *, drop: str | None = None
) -> tuple[list[VideoReport], bool]:
    """Label every video in turn with one loaded model.

    Returns: a report per video tried, and whether the person interrupted the run.
    Raises:  MasksieveError if the model cannot be loaded.
    """
    from pipeline.label import label_video
    from pipeline.prefetch import Prefetch
    from pipeline.scratch import sweep_scratch

    sweep_scratch(settings)
    model: LoadedModel | None = None
    reports: list[VideoReport] = []
    console = notices()
    with Board(console, len(wanted)) as board, Prefetch.of(wanted, settings) as ahead:
        try:
            for one in wanted:
                board.start(one.name)
                if one.error is not None:
                    reports.append(failed_report(one.video, one_line(one.error)))
                    board.finish(reports[-1])
                    continue
                model = model or _load(settings)
                try:
                    report = label_video(
                        one.video, one.prompts, out, settings, drop=drop, model=model, progress=board.update,
                        source=ahead.video(one.video),
                    )  # fmt: skip
                except MasksieveError as error:
                    report = failed_report(one.video, one_line(error))
                except Exception as error:
                    if debug_asked():
                        raise
                    log.debug("labelling %s failed", one.video, exc_info=True)
                    report = failed_report(one.video, f"{one_line(error)} (not foreseen; --debug shows where)")
                reports.append(report)
                board.finish(report)
        except KeyboardInterrupt:
            return reports, True
    return reports, False


def _load(settings: Settings) -> LoadedModel:
    """The model that the settings name."""
    from pipeline.models import load_model

    return load_model(settings.model.name, device=settings.model.device, cache_dir=settings.model.cache_dir)


def failed_report(video: str, error: str) -> VideoReport:
    """The report of a video that could not be labelled."""
    from pipeline.report import VideoReport

    return VideoReport(
        video=video, video_id="", status="failed", frames=0, objects=0, rows=0, accepted=0, review=0, hold=0, absent=0,
        untracked=0, wall_seconds=0.0, frames_per_second=0.0, generation=0, error=error, labels_uri="", review_uri="",
        certified=False, score_source="",
    )  # fmt: skip


def twins(reports: list[VideoReport]) -> list[tuple[str, str]]:
    """Pairs of names whose videos have the same bytes, in the order of the reports."""
    seen: dict[str, str] = {}
    return [(seen[one.video_id], one.video) for one in reports if seen.setdefault(one.video_id, one.video) != one.video]


def tell(reports: list[VideoReport], out: str) -> None:
    """The summary on stdout: the table, each failure with its reason, what the thresholds rest on, where it all is."""
    from pipeline.certificate import UNCERTIFIED

    console = results()
    console.print()
    console.print(summary_table(reports))
    for report in reports:
        if report.status == "failed":
            console.print(
                f"\n[bold red]failed[/] {escape(report.video)}\n  {escape(report.error or '')}", soft_wrap=True
            )
    done = [report for report in reports if report.status != "failed"]
    if not done:
        return
    console.print()
    for first, second in twins(done):
        console.print(
            f"[yellow]same bytes[/]: {escape(first)} and {escape(second)} are one video; labels are of the last one's "
            "prompts",
            soft_wrap=True,
        )
    for text in sorted({report.evidence for report in done} - {UNCERTIFIED.text}):
        console.print(evidence(text), soft_wrap=True)
    if any(report.evidence == UNCERTIFIED.text for report in done):
        sources = sorted({report.score_source for report in done if report.score_source})
        based = f"uncertainty is 1 - {' or '.join(sources)}; " if sources else ""
        console.print(f"[yellow]uncertified[/]: {based}the thresholds rest on no evidence yet", soft_wrap=True)
        if "sam_score" in sources:
            console.print(
                "this model has no uncertainty heads: see masksieve usam import, masksieve usam fit (docs/heads.md)",
                soft_wrap=True,
            )
    console.print(f"labels and review list: {escape(out)}", soft_wrap=True)
    console.print(f"look at one: masksieve show VIDEO --labels {escape(out)}", soft_wrap=True)
