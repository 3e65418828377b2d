"""Finds the videos that a call means (files, folders, globs, s3://) and pairs each with the prompts beside it."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import MasksieveError, PromptError, VideoError
from pipeline.settings import StorageSettings

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".mxf"})
PROMPTS_SUFFIX = ".prompts.json"
FILM_SUFFIX = ".overlay.mp4"  # of what `masksieve show` writes: no video to label, unless someone gives it prompts
LAYERS = frozenset({"masks", "candidates", "tokens", "labels", "review", "review_images", "commits", "probes"})


@dataclass(frozen=True)
class Wanted:
    """One video that a call asks for.

    Args:
        video: local path or s3:// URL.
        prompts: local path or s3:// URL of its prompts, None where none were found.
        error: why it cannot even be tried (missing, nothing in the folder), None where it can.
    """

    video: str
    prompts: str | None = None
    error: MasksieveError | None = None

    @property
    def name(self) -> str:
        """The file's name, for tables."""
        return PurePosixPath(self.video).name or self.video


def find_videos(
    inputs: Sequence[str],
    *,
    prompts: str | None = None,
    storage: StorageSettings | None = None,
    without_prompts: bool = False,
) -> list[Wanted]:
    """Every video that the inputs name, once, in order.

    Args:
        inputs: paths of files, folders, globs, or s3:// URLs of objects or prefixes. Folders and prefixes are searched
            in full depth, past what an earlier `label` or `show` wrote there.
        prompts: a prompts file, when there is exactly one video, or a folder of `<stem>.prompts.json`.
        storage: how s3:// is reached.
        without_prompts: a video may lack its file in the folder of prompts (its objects will be found).
    Returns: what was found; an input that leads nowhere is an entry with its error, so that the others are still done.
    Raises:  PromptError if one prompts file is given for several videos.
    """
    storage = storage or StorageSettings()
    found: dict[str, Wanted] = {}
    for item in inputs:
        for wanted in _expand(item, storage):
            found.setdefault(wanted.video, wanted)
    wanted_all = list(found.values())
    if prompts is None:
        return wanted_all
    if "://" not in prompts and Path(prompts).is_dir():
        return [_from_folder(wanted, Path(prompts), without_prompts) for wanted in wanted_all]
    if len([wanted for wanted in wanted_all if wanted.error is None]) > 1:
        raise PromptError(
            "one video with one prompts file",
            f"{len(wanted_all)} videos and --prompts {prompts}",
            "give a folder of <stem>.prompts.json, or put each file beside its video",
        )
    return [Wanted(wanted.video, prompts, wanted.error) for wanted in wanted_all]


def _expand(item: str, storage: StorageSettings) -> Iterable[Wanted]:
    """One input as videos."""
    if item.startswith("s3://"):
        return _expand_remote(item, storage)
    path = Path(item).expanduser()
    if path.is_dir():
        videos = [one for one in map(_beside, sorted(_walk(path))) if not _is_film(one)]
        if not videos:
            return [_missing(item, "a folder with videos", f"no file that ends in {', '.join(sorted(VIDEO_SUFFIXES))}")]
        return videos
    if path.exists():
        return [_beside(path)]
    if glob.has_magic(item):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [match for match in matches if match.is_file() and _is_video(match.name)]
        if not files:
            return [_missing(item, "a pattern that matches videos", f"{len(matches)} matches, no video among them")]
        return [_beside(file) for file in files]
    return [_missing(item, "a video file, a folder or a pattern", "nothing")]


def _expand_remote(url: str, storage: StorageSettings) -> Iterable[Wanted]:
    """Objects of an s3:// prefix, or the one object named."""
    from pipeline.storage.objects import ObjectStore

    bucket, _, key = url.removeprefix("s3://").partition("/")
    folder = key if not _is_video(key) else str(PurePosixPath(key).parent)
    folder = "" if folder == "." else folder.strip("/")
    root = f"s3://{bucket}/{folder}".rstrip("/")
    names = sorted(ObjectStore(root, storage).list(""))
    if _is_video(key):
        names_wanted = [name for name in names if name == PurePosixPath(key).name]
    else:
        names_wanted = [name for name in names if _is_video(name)]
    beside = set(names)
    found = [
        Wanted(f"{root}/{name}", f"{root}/{stem}{PROMPTS_SUFFIX}" if f"{stem}{PROMPTS_SUFFIX}" in beside else None)
        for name in names_wanted
        for stem in [str(PurePosixPath(name).with_suffix(""))]
    ]
    found = [one for one in found if _is_video(key) or not _is_film(one)]
    return found or [_missing(url, "a video or a prefix with videos", "nothing")]


def _walk(root: Path) -> Iterator[Path]:
    """The videos below a folder, in no order, past the layers of an earlier `label`."""
    for folder, below, files in os.walk(root):
        here = Path(folder)
        if "commits" in below and any((here / "labels").glob("drop=*")):
            below[:] = [name for name in below if name not in LAYERS]
        yield from (here / name for name in files if _is_video(name) and (here / name).is_file())


def _is_film(one: Wanted) -> bool:
    """Whether `show` wrote this file."""
    return one.prompts is None and one.video.endswith(FILM_SUFFIX)


def _is_video(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES


def _beside(file: Path) -> Wanted:
    """A local video with the prompts that lie beside it."""
    prompts = file.with_name(file.stem + PROMPTS_SUFFIX)
    return Wanted(str(file), str(prompts) if prompts.is_file() else None)


def _from_folder(wanted: Wanted, folder: Path, without_prompts: bool) -> Wanted:
    """The same video with its prompts from another folder."""
    prompts = folder / (PurePosixPath(wanted.video).stem + PROMPTS_SUFFIX)
    if without_prompts and not prompts.exists():
        return Wanted(wanted.video, None, wanted.error)
    return Wanted(wanted.video, str(prompts), wanted.error)  # one that is missing is told with the folder's name


def _missing(item: str, expected: str, got: str) -> Wanted:
    return Wanted(item, None, VideoError(expected, f"{got} at {item}", "check the path"))
