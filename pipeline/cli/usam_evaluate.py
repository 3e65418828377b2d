"""`masksieve usam evaluate | compare`: how good heads are, beside SAM2's own score and entropies on the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.cli.console import CallError, notices, plain_table, reading_the_call, results
from pipeline.cli.progress import Counter

if TYPE_CHECKING:
    from usam.evaluate import Evaluation
    from usam.heads import HeadBank
    from usam.isotonic import Isotonic
    from usam.judge import Contender, Exam
    from usam.report import Cell, Table
    from usam.shard import Shard

INSTALLED = "installed"
_ONLY_IN_FILES = ("rows", "videos", "mean_target", "low", "high", "spearman")
ShardPath = Annotated[
    Path, typer.Argument(metavar="SHARD", help="A harvest to judge on; no training video may be in it.")
]
Banks = Annotated[
    list[str],
    typer.Option(
        "--bank",
        "-b",
        help="NAME=BANK or BANK: a .safetensors file, a folder of published-style heads (<head>/model.pth), "
        "or the word installed.",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for tables and curves.")]
Training = Annotated[
    Path | None,
    typer.Option(
        "--isotonic", metavar="SHARD", help="Training harvest: SAM2's score is fitted to IoU on it, as baseline."
    ),
]
Size = Annotated[str | None, typer.Option(help="Whose masks to judge.", show_default="the deployed model's")]
Of = Annotated[
    str, typer.Option(help="Judge the mask that SAM2 chose (chosen), or the best by the truth (best, published).")
]
Replicates = Annotated[int, typer.Option(min=0, help="Draws of videos for 95% intervals; 0 for none.")]
MinRows = Annotated[int, typer.Option(min=1, help="Judged rows that a video needs to count within videos.")]
Seed = Annotated[int, typer.Option(help="Of the draws and of what is trained here.")]


def evaluate(
    shard: ShardPath,
    bank: Banks,
    out: Out,
    isotonic: Training = None,
    ablation: Annotated[
        Path | None,
        typer.Option(metavar="SHARD", help="Training harvest: heads on one token alone and on both are trained on it."),
    ] = None,
    runtime: Annotated[int, typer.Option(min=0, help="Frames to time each model size on; 0 for none.")] = 5,
    device: Annotated[str, typer.Option(help="Where models are timed.")] = "cpu",
    size: Size = None,
    of: Of = "chosen",
    replicates: Replicates = 1000,
    min_rows: MinRows = 10,
    seed: Seed = 0,
) -> None:
    """Judge a bank in depth: curves, areas, correlations, calibration, each head, its tokens, and what it costs."""
    from usam.judge import heads_table

    _need_folder(out)
    exam, training, banks, contenders = _line_up(shard, bank, isotonic, size, of, differences=False)
    more = [heads_table(name, heads, exam, replicates=replicates, seed=seed) for name, heads in banks.items()]
    if ablation is not None:
        more.append(_ablation(ablation, exam, next(iter(banks.values())), out, seed))
    if runtime:
        more.append(_runtime(exam.shard, next(iter(banks.values())), runtime, device))
    evaluation = _judge(exam, contenders, replicates, min_rows, seed)
    _write(evaluation, exam, contenders, training, out, more)


def compare(
    shard: ShardPath,
    bank: Banks,
    out: Out,
    isotonic: Training = None,
    stacker: Annotated[
        Path | None,
        typer.Option(help="A stacker for one of the banks.", show_default="the ones that lie beside their banks"),
    ] = None,
    size: Size = None,
    of: Of = "chosen",
    replicates: Replicates = 1000,
    min_rows: MinRows = 10,
    seed: Seed = 0,
) -> None:
    """Judge banks side by side with SAM2's own score, raw and fitted, entropies, and gaps as differences of heads."""
    _need_folder(out)
    exam, training, banks, contenders = _line_up(shard, bank, isotonic, size, of, differences=True)
    if stacker is not None:
        contenders.insert(0, _stacked(stacker, banks, exam))
    evaluation = _judge(exam, contenders, replicates, min_rows, seed)
    _write(evaluation, exam, contenders, training, out, [])


def _need_folder(out: Path) -> None:
    """Say before any work that the report has nowhere to go."""
    if out.exists() and not out.is_dir():
        raise CallError(f"a folder for the report at {out}", "a file", "name another --out")


def _line_up(
    path: Path, words: Sequence[str], isotonic: Path | None, size: str | None, of: str, *, differences: bool
) -> tuple[Exam, Isotonic | None, dict[str, HeadBank], list[Contender]]:
    """The rows, the fitted map if one was asked for, the banks by name, and every score."""
    from usam.judge import bank_contenders, exam_of, fit_isotonic, require_other_videos, rivals, stacker_contender

    exam = exam_of(_open(path), size=size, of=of)
    banks = dict(_banks(words, exam.shard))
    fitted = None
    if isotonic is not None:
        training = exam_of(_open(isotonic), size=exam.size, of=of)
        require_other_videos(exam, training)
        fitted = fit_isotonic(training)
    contenders = []
    for name, bank in banks.items():
        found = bank_contenders(name, bank, exam)
        if bank.stacker is not None and exam.shard.plan.kind == "tracked":
            contenders.append(stacker_contender(f"{name}_stacked", bank, bank.stacker, exam))
        contenders += found if differences else [c for c in found if c.name == name]
    return exam, fitted, banks, [*contenders, *rivals(exam, fitted)]


def _open(path: Path) -> Shard:
    from usam.shard import Shard

    if not path.is_dir():
        raise CallError(f"a harvest at {path}", "no folder", "make one with `masksieve usam harvest`")
    return Shard.open(path)


def _banks(words: Sequence[str], shard: Shard) -> Iterator[tuple[str, HeadBank]]:
    """Banks by name: what stands before `=`, else the file's stem."""
    from usam.heads import HeadCard
    from usam.weights import import_published, load_bank

    names: set[str] = set()
    for word in words:
        name, equals, place = word.partition("=")
        path = Path(place if equals else word)
        name = name if equals else path.stem
        if not name or name in names or not all(c.isalnum() or c in "-_.:" for c in name):
            step = "write NAME=BANK with letters, digits, - and _"
            raise CallError("a name of its own for each bank", repr(name), step)
        names.add(name)
        if str(path) == INSTALLED and not path.exists():
            yield name, _installed(shard)
        elif path.is_dir():
            yield name, import_published(path, HeadCard("", "", mask_token_offset=0))
        elif path.is_file():
            yield name, load_bank(path)
        else:
            raise CallError(f"a bank at {path}", "nothing there", "train one with `masksieve usam train`")


def _installed(shard: Shard) -> HeadBank:
    """The bank that labelling with the shard's deployed model uses."""
    from pipeline.models import bank_folders
    from usam.bank_files import bank_path_for
    from usam.weights import load_bank

    model = shard.plan.models[shard.plan.deployed]
    path = bank_path_for(model["sha256"], bank_folders())
    if path is None:
        raise CallError(f"heads installed for {model['name']}", "none", "fit them with `masksieve usam fit`")
    return load_bank(path)


def _stacked(path: Path, banks: Mapping[str, HeadBank], exam: Exam) -> Contender:
    """The score of a stacker file, fed by that bank of the call which it was made for."""
    from usam.judge import stacker_contender
    from usam.stacker import load_stacker
    from usam.weights import heads_sha256

    if not path.is_file():
        raise CallError(f"a stacker at {path}", "no file", "check the path")
    stacker = load_stacker(path)
    own = [bank for bank in banks.values() if heads_sha256(bank) == stacker.card.heads_sha256]
    if not own:
        got = f"{', '.join(banks)}, and it was made for heads {stacker.card.heads_sha256[:12]}"
        raise CallError(f"the bank of {path} among --bank", got, "name that bank too")
    return stacker_contender(path.stem, own[0], stacker, exam)


def _ablation(path: Path, exam: Exam, bank: HeadBank, out: Path, seed: int) -> Table:
    from usam.ablation import token_ablation
    from usam.judge import exam_of
    from usam.recipes import Recipe

    training = exam_of(_open(path), size=exam.size, of=exam.of)
    with Counter(notices(), "training on parts of the input", "heads") as count:
        return token_ablation(
            training, exam, recipe=Recipe(members=1, seed=seed), offset=bank.mask_token_offset,
            checkpoint_dir=out / "ablation", progress=count,
        )  # fmt: skip


def _runtime(shard: Shard, bank: HeadBank, frames: int, device: str) -> Table:
    """Each model of the shard, as far as its weights are on this machine."""
    from pipeline.errors import ModelError
    from pipeline.models import load_model, resolve_device
    from usam.report import Table
    from usam.runtime import image_runtime

    with reading_the_call():
        place = resolve_device(device)
    rows: list[tuple[Cell, ...]] = []
    notes = [f"Medians over {frames} images of noise, 480 x 854, one click each, measured in this call on {place}."]
    with Counter(notices(), "timing", "models") as count:
        for number, (size, known) in enumerate(shard.plan.models.items()):
            count(known["name"], number, len(shard.plan.models))
            try:
                loaded = load_model(known["name"], device=place)
            except ModelError as error:
                notes.append(f"{size} was not timed: {str(error).rstrip('.?')}.")
                continue
            time = image_runtime(loaded.model, bank.to(place), frames)
            rows.append((
                size, known["name"], time.frames, time.sam2_seconds, time.with_heads_seconds,
                time.heads_seconds / time.sam2_seconds, time.h_t_seconds, time.h_t_seconds / time.sam2_seconds,
            ))  # fmt: skip
    bank.to("cpu")
    columns = ("size", "model", "frames", "sam2_s", "with_all_heads_s", "heads_share", "H_T_s", "H_T_times_sam2")
    notes.append(f"All heads: {len(bank.heads)} heads, {len(bank.names)} MLPs.")
    return Table("Runtime", columns, rows, tuple(notes))


def _judge(exam: Exam, contenders: Sequence[Contender], replicates: int, min_rows: int, seed: int) -> Evaluation:
    from usam.judge import judge

    with Counter(notices(), "drawing videos", "draws") as count:
        return judge(
            exam, contenders, replicates=replicates, min_rows=min_rows, seed=seed,
            progress=lambda done, total: count("", done, total),
        )  # fmt: skip


def _write(
    evaluation: Evaluation,
    exam: Exam,
    contenders: Sequence[Contender],
    isotonic: Isotonic | None,
    out: Path,
    more: Sequence[Table],
) -> None:
    from usam.judge import ranks_table
    from usam.report import write_report

    files = write_report(evaluation, out, [ranks_table(exam, contenders), *more])
    if isotonic is not None:
        files.append(isotonic.save(out / "isotonic.json"))
    _tell(evaluation, exam, [c.name for c in contenders])
    for table in more:
        _print(table)
    results().print(f"{', '.join(file.name for file in files)} in {escape(str(out))}", soft_wrap=True)


def _tell(evaluation: Evaluation, exam: Exam, names: Sequence[str]) -> None:
    """One line per score; a star where its interval lies ahead of the baseline's, an o where it lies behind."""
    rows = evaluation.rows
    told = results()
    told.print(
        f"{rows.judged:,} of {rows.rows:,} rows judged in {rows.videos:,} videos; mean IoU {rows.mean_iou:.3f}; "
        f"{rows.missed:,} missed, {rows.false:,} false, {rows.empty:,} empty on both sides"
    )
    for note in exam.notes:
        told.print(note, soft_wrap=True)
    metrics = [("pearson", "pooled"), ("spearman", "pooled"), ("aurc", "pooled"), ("calibration_error", "pooled"),
               ("pearson", "within video"), ("aurc", "within video")]  # fmt: skip
    metrics += [("relative_area", application) for application in exam.applications]
    figures = {(f.metric, f.scope, f.score): f for f in evaluation.figures}
    short = {"pooled": "", "within video": " in video"}
    table = plain_table()
    table.add_column("score", no_wrap=True)
    for metric, scope in metrics:
        words = (
            f"{metric.replace('calibration_error', 'ece')}{short[scope]}"
            if scope in short
            else f"{scope.replace('segmentation', 'segm.')} area"
        )
        table.add_column(words, justify="right")
    for name in names:
        cells = []
        for metric, scope in metrics:
            found = figures.get((metric, scope, name))
            if found is None or found.value != found.value:
                cells.append("-")
                continue
            mark = "*" if found.ahead_low > 0 else "o" if found.ahead_high < 0 else " "
            cells.append(f"{found.value:.3f}{mark}")
        table.add_row(escape(name), *cells)
    told.print(table)
    told.print(f"* ahead of {evaluation.baseline}, o behind it: the 95% interval over videos leaves out 0")


def _print(table: Table) -> None:
    """A table of the report, without columns for which a screen is too narrow."""
    shown = plain_table()
    told_columns = [i for i, column in enumerate(table.columns) if column not in _ONLY_IN_FILES]
    for i in told_columns:
        shown.add_column(table.columns[i], justify="right", no_wrap=True)
    for row in table.rows:
        cells = (row[i] for i in told_columns)
        shown.add_row(*(("-" if c != c else f"{c:.3g}") if isinstance(c, float) else escape(str(c)) for c in cells))
    told = results()
    told.print(f"\n[bold]{escape(table.title)}[/]")
    told.print(shown if table.rows else "nothing that was measured here")
    for note in table.notes:
        told.print(escape(note), soft_wrap=True)
