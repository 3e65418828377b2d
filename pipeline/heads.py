"""Gets heads for a model: imports published-style folders, or fits `iou_tracked` from labelled videos."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.drops import VIDEO_SUFFIXES
from pipeline.errors import HeadError
from pipeline.models import LoadedModel, bank_folders
from pipeline.prompts import load_prompts
from pipeline.propagate import FrameResult, Session
from pipeline.settings import Settings
from pipeline.video.probe import probe_video
from pipeline.video.stream import FrameStream
from usam.harvest import TruthClip, harvest
from usam.heads import HeadBank, HeadCard
from usam.train import fit_tracked
from usam.warm import score_head_state
from usam.weights import import_published, install_path, save_bank

TRUTH_SUFFIX = ".truth.npz"


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
    width = 2 * int(loaded.model.hidden_dim)
    if bank.width != width:
        raise HeadError(
            f"heads of width {width} for {loaded.name}", f"{bank.width}", "name the model they were trained for"
        )
    return install(bank, loaded, settings), bank


def fit_heads(
    folder: Path, loaded: LoadedModel, settings: Settings, progress: Callable[[str], None] = lambda _: None
) -> tuple[Path, HeadBank]:
    """Fit `iou_tracked` to a model from videos with truth, and install it.

    Args:
        folder: `<stem>.mp4` (or any video), `<stem>.prompts.json` and `<stem>.truth.npz` with `ids_thw`: (T, H, W)
            uint8, the object id seen at each pixel, 0 for none; ids as in the prompts. At least two videos.
        loaded: the model.
        settings: decoding and cache.
        progress: told each video's name as it starts.
    Returns: the installed file and the bank.
    Raises:  HeadError for a folder without such triples, truth of another size, or too few videos.
    """
    truths = sorted(folder.glob(f"*{TRUTH_SUFFIX}"))
    if len(truths) < 2:
        raise HeadError(
            f"at least two videos with {TRUTH_SUFFIX} in {folder}",
            str(len(truths)),
            "add videos with truth (docs/heads.md)",
        )
    rows = harvest(clip for truth in truths for clip in _truth_clip(truth, loaded, settings, progress))
    bank = fit_tracked(
        rows, loaded.name, loaded.sha256, start=score_head_state(loaded.model), provenance={"videos_given": len(truths)}
    )
    return install(bank, loaded, settings), bank


def install(bank: HeadBank, loaded: LoadedModel, settings: Settings) -> Path:
    """Put a bank where `load_model` finds it: the cache's `heads/`."""
    return save_bank(bank, install_path(loaded.name, loaded.sha256, bank_folders(settings.model.cache_dir)[0]))


def _truth_clip(
    truth: Path, loaded: LoadedModel, settings: Settings, progress: Callable[[str], None]
) -> Iterator[TruthClip]:
    stem = truth.name.removesuffix(TRUTH_SUFFIX)
    videos = [path for path in truth.parent.glob(f"{glob.escape(stem)}.*") if path.suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        raise HeadError(
            f"a video {stem}.mp4 beside {truth.name}", "none", "put the three files of a video side by side"
        )
    progress(stem)
    info = probe_video(videos[0], settings.decode)
    prompts = load_prompts(truth.with_name(f"{stem}.prompts.json"))
    prompts.validate(info)
    ids_thw = _read_ids(truth)
    if ids_thw.shape != (info.num_frames, info.height, info.width):
        raise HeadError(
            f"truth of {(info.num_frames, info.height, info.width)} for {videos[0].name}",
            str(ids_thw.shape),
            "give one id map per frame at the video's size",
        )

    def masks() -> Iterator[list[FrameResult]]:
        session = Session(
            loaded.model, prompts, (info.height, info.width), info.num_frames, reverse=False,
            precision=settings.model.precision,
        )  # fmt: skip
        with FrameStream(
            info, settings.decode, resize=loaded.image_size, indices=session.conditioning_frames
        ) as stream:
            prompted = {frame.index: frame.rgb_hw3 for frame in stream}
        session.prepare(prompted.__getitem__)
        with FrameStream(info, settings.decode, resize=loaded.image_size) as stream:
            yield from session.forward(stream)

    yield TruthClip(stem, masks(), lambda frame, object_id: ids_thw[frame] == object_id)


def _read_ids(truth: Path) -> NDArray[np.uint8]:
    try:
        with np.load(truth, allow_pickle=False) as data:
            ids: NDArray[np.uint8] = data["ids_thw"]
    except (OSError, KeyError, ValueError) as error:
        raise HeadError(
            f"an array ids_thw in {truth}", type(error).__name__, "write it with numpy.savez_compressed"
        ) from error
    return ids
