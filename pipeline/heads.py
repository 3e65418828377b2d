"""Gets heads for a model: imports published-style folders, or fits them to videos with truth or reviewed rows."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path

from pipeline.checkpoints import cache_root, model_size
from pipeline.drops import PROMPTS_SUFFIX
from pipeline.errors import HeadError
from pipeline.fit_reviewed import harvest_reviewed, read_reviewed
from pipeline.fit_triples import find_triples, harvest_triples
from pipeline.harvest_tracked import Protocol, harvest_tracked
from pipeline.label import torch_threads
from pipeline.models import LoadedModel, bank_folders
from pipeline.settings import Settings
from pipeline.storage.objects import ObjectStore
from usam.bank_files import install_path
from usam.datasets.registry import describe, find_split, open_dataset
from usam.datasets.samples import EVERYTHING, DataSet, Selection
from usam.errors import DatasetError
from usam.fit_bank import fit_bank
from usam.harvest_frames import harvest_frames
from usam.heads import HeadBank, HeadCard, MlpState
from usam.shard import Shard
from usam.stack import add_stacker, can_stack
from usam.targets import HEADS
from usam.warm import score_head_state
from usam.weights import import_published, save_bank

log = logging.getLogger(__name__)

Progress = Callable[[str, str, int, int], None]
"""Told the stage (reading, propagating, training), what is worked on, how many are done, and how many there are."""

_SINGLE_IMAGES = ("ade20k", "coco")


def import_heads(folder: Path, loaded: LoadedModel, settings: Settings) -> tuple[Path, HeadBank]:
    """Install published-style heads (`<head>/model.pth`) for a model.

    Args:
        folder: holds one folder per head.
        loaded: the model whose tokens they read; the bank is keyed by its checksum.
        settings: names the cache.
    Returns: the installed file and the bank; its card says that the heads are fed token j for output j.
    Raises:  HeadError if there is no head, one is damaged, or their width is not the model's.
    """
    if not folder.is_dir():
        raise HeadError(f"a folder of heads at {folder}", "no folder", "give the folder that holds <head>/model.pth")
    card = HeadCard(loaded.name, loaded.sha256, mask_token_offset=0, recipe={"imported_from": folder.name})
    bank = import_published(folder, card)
    for path in sorted(folder.glob("*/model.pth")):
        if path.parent.name not in HEADS:
            log.warning("passed over %s: no head is called that", path.parent.name)
    width = 2 * int(loaded.model.hidden_dim)
    if bank.width != width:
        raise HeadError(
            f"heads of width {width} for {loaded.name}", f"{bank.width}", "name the model they were trained for"
        )
    return install(bank, loaded, settings), bank


def fit_heads(
    truth: Path,
    loaded: LoadedModel,
    settings: Settings,
    *,
    dataset: str | None = None,
    split: str | None = None,
    selection: Selection = EVERYTHING,
    labels: str | None = None,
    work: Path | None = None,
    progress: Progress = lambda stage, name, done, total: None,
) -> tuple[Path, HeadBank]:
    """Fit heads to a model from whatever says how good its masks are, and install them.

    Args:
        truth: one of
            a folder of videos, each with `STEM.prompts.json` and `STEM.truth.npz` (`ids_thw`: (T, H, W) uint8, the
            object id seen at each pixel, 0 for none; ids as in the prompts);
            a data set in its published layout: objects are clicked in the middle where they first show, and propagated
            (single images are not);
            with `labels`, reviewed rows as Parquet (`pipeline.fit_reviewed.read_reviewed`).
            Always at least two videos.
        loaded: the model.
        settings: decoding, storage and cache.
        dataset, split, selection: of a data set; found by the layout, its training split if it has several.
        labels: the output of `masksieve label` whose masks were reviewed, made with `output.tokens`.
        work: keeps the rows and what is trained so far; if None a folder in the cache, which goes when all is done.
        progress: see `Progress`.
    Returns: the installed file and the bank: every head whose target the truth gives, `iou_tracked` unless these are
             single images.
    Raises:  HeadError for a path that is none of these, rows that match nothing, or too few videos; DatasetError for a
             data set's own faults; VideoError, PromptError of a video. The same call goes on where it broke off.
    """
    with _folder(work, truth, loaded, settings, [dataset, split, selection, labels]) as folder:
        with torch_threads(settings, loaded):
            if labels is not None:
                progress("reading", truth.name, 0, 0)
                store = ObjectStore(labels, settings.storage)
                shard, offset = harvest_reviewed(read_reviewed(truth), store, loaded, folder)
            elif truth.is_file() or any(truth.glob("*.parquet")):
                step = "name it by --labels; its tokens say what the heads are fed"
                raise HeadError("the output that these rows were reviewed from", "none", step)
            elif dataset is None and _is_triples(truth):
                told = partial(progress, "propagating")
                shard, offset = harvest_triples(find_triples(truth), loaded, settings, folder, told), 1
            else:
                opened = open_truth(truth, dataset, split, selection)
                shard, offset = _harvest_dataset(opened, loaded, folder, progress), 1
        bank = fit_bank(
            [shard],
            offset=offset,
            start=_start(loaded),
            checkpoint_dir=folder / "training",
            progress=partial(progress, "training"),
        )
        if can_stack(bank, [shard]):
            add_stacker(bank, [shard])
        path = install(bank, loaded, settings)
    return path, bank


def open_truth(
    root: Path, name: str | None = None, split: str | None = None, selection: Selection = EVERYTHING
) -> DataSet:
    """The split of a data set to fit heads on: the training split, or the only one there, if none is named.

    Raises: DatasetError for a folder in no known layout, splits to choose from, or fewer than two videos.
    """
    if split is None:
        split = next((one for one in describe(root, name).splits if one.startswith("train")), None)
    name, root, split = find_split(root, name, split)
    opened = open_dataset(name, root, split, selection)
    if len(opened) < 2:
        step = "rows are split by video: name a split with more, or read more videos"
        raise DatasetError(f"at least two videos in {name} {split}", str(len(opened)), step)
    return opened


def install(bank: HeadBank, loaded: LoadedModel, settings: Settings) -> Path:
    """Put a bank where `load_model` finds it: the cache's `heads/`."""
    return save_bank(bank, install_path(loaded.name, loaded.sha256, bank_folders(settings.model.cache_dir)[0]))


def _is_triples(path: Path) -> bool:
    """Whether a folder holds prompts; truth beside videos without any is a data set of rendered clips."""
    return any(path.glob(f"*{PROMPTS_SUFFIX}"))


def _harvest_dataset(opened: DataSet, loaded: LoadedModel, folder: Path, progress: Progress) -> Shard:
    """Rows of a data set: of propagated frames, or of single images where nothing can be propagated."""
    size = model_size(loaded.name)
    if opened.name in _SINGLE_IMAGES:
        return harvest_frames(opened, {size: loaded}, folder, deployed=size, progress=partial(progress, "reading"))
    shard = harvest_tracked(
        opened,
        {size: loaded},
        folder,
        deployed=size,
        protocol=Protocol(entropies=()),
        progress=partial(progress, "propagating"),
    )
    if shard.column("prompted").all():
        got = f"none in {opened.name} {opened.split}, which has truth for the first frame alone"
        raise DatasetError("truth of propagated frames", got, "name the training split")
    return shard


def _start(loaded: LoadedModel) -> MlpState | None:
    """The model's own score as a start; a model whose score is built otherwise starts at random."""
    try:
        return score_head_state(loaded.model)
    except HeadError as error:
        log.info("heads start at random: %s", error)
        return None


@contextmanager
def _folder(
    work: Path | None, truth: Path, loaded: LoadedModel, settings: Settings, words: list[object]
) -> Iterator[Path]:
    """Where rows and trained members lie meanwhile: the given folder, or one in the cache until all went well.

    The one in the cache is named after the call and the truth's files, so that a changed file starts anew.
    """
    if work is not None:
        yield work
        return
    about = [str(truth.resolve()), loaded.sha256, settings.model.precision, *words, _stamp(truth)]
    folder = cache_root(settings.model.cache_dir) / "fit" / sha256(repr(about).encode()).hexdigest()[:16]
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _stamp(path: Path) -> str:
    """Changes when a file of a tree does, by name, size or time."""
    digest = sha256()
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            facts = os.lstat(os.path.join(folder, name))
            digest.update(repr((os.path.relpath(folder, path), name, facts.st_size, facts.st_mtime_ns)).encode())
    if path.is_file():
        digest.update(repr((path.stat().st_size, path.stat().st_mtime_ns)).encode())
    return digest.hexdigest()
