"""`masksieve usam fit` and `import`: heads of a model, from truth or from published-style folders, installed."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.cli.console import CallError, notices, plain_table, reading_the_call, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.progress import Counter

if TYPE_CHECKING:
    from pipeline.models import LoadedModel
    from pipeline.settings import Settings
    from usam.heads import HeadBank

Model = Annotated[str, typer.Option("--model", "-m", help="The model that the heads belong to.")]


def import_(
    folder: Annotated[Path, typer.Argument(help="Holds one folder per head, each with a model.pth.")],
    model: Model,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Install published-style heads for a model."""
    from pipeline.heads import import_heads

    loaded, settings = _model(model, config, set_, folder, "a folder")
    path, bank = import_heads(folder, loaded, settings)
    _tell(path, bank, loaded)


def fit(
    folder: Annotated[
        Path | None, typer.Argument(help="The same as --truth.", show_default=False, metavar="[FOLDER]")
    ] = None,
    *,
    model: Model,
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth", "-t", show_default=False,
            help="Videos with STEM.prompts.json and STEM.truth.npz; a data set; or, with --labels, reviewed rows.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", "-l", help="The --out of the label run that was reviewed.", show_default=False),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="The data set's name.", show_default="found by layout")] = None,
    split: Annotated[str | None, typer.Option(help="Which split.", show_default="the training split")] = None,
    max_videos: Annotated[int | None, typer.Option(help="Videos to read.", show_default="all")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Frames per video.", show_default="all")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Keeps the rows, to train or evaluate on.", show_default="in the cache")
    ] = None,
    config: Config = None,
    set_: Set = None,
) -> None:  # fmt: skip
    """Fit heads to a model from videos with truth, a data set or reviewed rows, and install them.

    A run that was killed goes on with the same call.
    """
    from pipeline.heads import fit_heads
    from usam.datasets.samples import Selection

    path = truth or folder
    if path is None or (truth and folder):
        got = "none" if path is None else f"{folder} and {truth}"
        raise CallError("truth to fit heads to, once", got, "name it by --truth")
    if labels is not None and (dataset or split or max_videos or max_frames):
        raise CallError("--labels alone", "options of a data set beside it", "leave these out")
    if labels is not None and "://" not in labels and not Path(labels).expanduser().is_dir():
        raise CallError(f"labels in {labels}", "no folder", "give the --out of masksieve label")
    with reading_the_call():
        selection = Selection(max_videos, max_frames)
    loaded, settings = _model(model, config, set_, path, "truth")
    with _Stages(notices()) as stages:
        file, bank = fit_heads(
            path, loaded, settings, dataset=dataset, split=split, selection=selection, labels=labels, work=work,
            progress=stages,
        )  # fmt: skip
    _tell(file, bank, loaded)
    _figures(bank)


class _Stages:
    """One progress bar after another, as stages come; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console, self._stage, self._open = console, "", ExitStack()
        self._count: Counter | None = None

    def __enter__(self) -> _Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def __call__(self, stage: str, name: str, done: int, total: int) -> None:
        if self._count is None or stage != self._stage:
            self._open.close()
            self._stage, unit = stage, "epochs" if stage == "training" else "videos"
            self._count = self._open.enter_context(Counter(self._console, stage, unit))
        self._count(name, done, total)


def _model(
    name: str, config: str | None, set_: list[str] | None, path: Path, what: str
) -> tuple[LoadedModel, Settings]:
    """The model and the settings that a call names, once its words are known to lead somewhere."""
    from pipeline.checkpoints import model_spec
    from pipeline.models import load_model

    settings = make_settings(config, set_, model=name)
    with reading_the_call():
        model_spec(name)
    if not (path.is_dir() if what == "a folder" else path.exists()):
        raise CallError(f"{what} at {path}", "nothing there" if not path.exists() else "a file", "check the path")
    return load_model(name, device=settings.model.device, cache_dir=settings.model.cache_dir), settings


def _tell(path: Path, bank: HeadBank, loaded: LoadedModel) -> None:
    """What was installed, what it is fed, what is the score from now on, and what it was before."""
    from pipeline.score import score_head

    told, score = results(), score_head(bank)
    own = "its own token" if bank.mask_token_offset else "the token before its own (as published)"
    told.print(f"installed {', '.join(bank.heads)} for {bank.card.model_name}: {escape(str(path))}", soft_wrap=True)
    told.print(
        f"each head is fed {bank.width} numbers: the IoU token and, for the chosen mask, {own}; still uncertified"
    )
    says = "SAM2's own, for no head predicts the IoU of this model's masks" if score == "sam_score" else score
    before = score_head(loaded.bank)
    told.print(f"score of a mask from now on: {says}" + (f" (before: {before})" if before != score else ""))


def _figures(bank: HeadBank) -> None:
    """Held-out figures, each head beside SAM2's own score."""
    from pipeline.score import score_head

    table = plain_table()
    for heading in ("held out", "score", "rows", "videos", "Pearson", "MAE", "bias"):
        table.add_column(heading, justify="left" if heading in ("held out", "score") else "right", no_wrap=True)
    for head, groups in bank.card.heldout.items():
        for rows, figures in groups.items():
            score = "SAM2's own" if rows.endswith("sam_score") else "head"
            numbers = [f"{figures[name]:.3f}" for name in ("pearson", "mae", "bias")]
            table.add_row(head, score, f"{figures['rows']:,}", f"{figures['videos']:,}", *numbers)
    results().print(table)
    head = bank.card.heldout.get(score_head(bank), {})
    if head and head["judged"]["pearson"] < head["judged_sam_score"]["pearson"]:
        notices().print(
            "the new score is behind SAM2's own there: fit to more videos, or delete the bank's two files to go back",
            soft_wrap=True,
        )
