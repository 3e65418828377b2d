"""Finds the videos that a call means (files, folders, globs, s3://) and pairs each with the prompts beside it."""

from __future__ import annotations

import glob
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import MasksieveError, PromptError, VideoError
from pipeline.names import local_path, shown, unhandled_name, unprintable_name
from pipeline.settings import StorageSettings
from pipeline.storage.local import walk

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
    path = local_path(item)
    if path.is_dir():
        unread: list[OSError] = []
        videos = [
            _wanted(str(path / name), None if prompts is None else str(path / prompts), unprintable_name(name))
            for name, prompts in pair_names(_walk(path, unread))
        ]
        videos += [
            _missing(str(error.filename), "a folder that can be searched", str(error.strerror)) for error in unread
        ]
        got = f"no file that ends in {', '.join(sorted(VIDEO_SUFFIXES))}"
        return videos or [_missing(item, "a folder with videos", got)]
    if path.exists():
        return [_beside(path)]
    if glob.has_magic(item):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [match for match in matches if match.is_file() and is_video(match.name)]
        if not files:
            return [_missing(item, "a pattern that matches videos", f"{len(matches)} matches, no video among them")]
        return [_beside(file) for file in files]
    return [_missing(item, "a video file, a folder or a pattern", "nothing")]


def _expand_remote(url: str, storage: StorageSettings) -> Iterable[Wanted]:
    """Objects of an s3:// prefix, or the one object named."""
    from pipeline.storage.objects import ObjectStore

    bucket, _, key = url.removeprefix("s3://").partition("/")
    folder = key if not is_video(key) else str(PurePosixPath(key).parent)
    folder = "" if folder == "." else folder.strip("/")
    root = f"s3://{bucket}/{folder}".rstrip("/")
    names = ObjectStore(root, storage).list("")
    if is_video(key):
        name, beside = PurePosixPath(key).name, set(names)
        pairs = [(name, prompts_name(name) if prompts_name(name) in beside else None)] if name in beside else []
    else:
        pairs = pair_names(names)
    found = [
        _wanted(f"{root}/{name}", None if prompts is None else f"{root}/{prompts}", unhandled_name(name))
        for name, prompts in pairs
    ]
    return found or [_missing(url, "a video or a prefix with videos", "nothing")]


def pair_names(names: Iterable[str]) -> list[tuple[str, str | None]]:
    """The videos among the files of a folder or prefix, sorted, each with the prompts beside it.

    What an earlier `label` or `show` wrote there is left out.

    Args:    names: of all files, relative, with forward slashes; may be a listing under way.
    Returns: names of videos and of their prompts, None where there are none.
    """
    videos, prompts, labelled, committed = [], set(), set(), set()
    for name in names:
        if is_video(name):
            videos.append(name)
        elif name.endswith(PROMPTS_SUFFIX):
            prompts.add(name)
        # An output is a folder with both of these: a folder of labels alone may be somebody else's.
        elif (root := _parent_of(name, "labels/drop=")) is not None:
            labelled.add(root)
        elif (root := _parent_of(name, "commits/")) is not None:
            committed.add(root)
    layers = tuple(f"{root}{layer}/" for root in labelled & committed for layer in LAYERS)
    pairs = []
    for name in sorted(videos):
        beside = prompts_name(name)
        if not name.startswith(layers) and (beside in prompts or not name.endswith(FILM_SUFFIX)):
            pairs.append((name, beside if beside in prompts else None))
    return pairs


def prompts_name(video: str) -> str:
    """What the prompts beside a video are called."""
    return posixpath.splitext(video)[0] + PROMPTS_SUFFIX


def drop_name(folder: str) -> str:
    """The name of a drop that was given none: the last part of its folder or prefix."""
    return PurePosixPath(folder.partition("://")[2] or str(local_path(folder).resolve())).name or "default"


def _walk(root: Path, unread: list[OSError]) -> Iterator[str]:
    """The files below a folder, relative to it, in no order; why a folder could not be listed is added to `unread`."""
    for folder, _, files in walk(root, unread.append):
        below = os.path.relpath(folder, root)
        for name in files:
            if not (is_video(name) or name.endswith(PROMPTS_SUFFIX)) or os.path.isfile(os.path.join(folder, name)):
                yield name if below == "." else f"{below}/{name}"


def _parent_of(name: str, layer: str) -> str | None:
    """The folder that holds this layer of labels, if the file is one of the layer's: "" or "some/where/"."""
    if name.startswith(layer):
        return ""
    before, found, _ = name.partition(f"/{layer}")
    return f"{before}/" if found else None


def is_video(name: str) -> bool:
    """Whether a file's name is that of a video."""
    return posixpath.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _beside(file: Path) -> Wanted:
    """A local video with the prompts that lie beside it."""
    prompts = file.with_name(prompts_name(file.name))
    return _wanted(str(file), str(prompts) if os.path.isfile(prompts) else None, unprintable_name(str(file)))


def _from_folder(wanted: Wanted, folder: Path, without_prompts: bool) -> Wanted:
    """The same video with its prompts from another folder."""
    prompts = folder / prompts_name(wanted.name)
    if without_prompts and not prompts.exists():
        return Wanted(wanted.video, None, wanted.error)
    return Wanted(wanted.video, str(prompts), wanted.error)  # one that is missing is told with the folder's name


def _wanted(video: str, prompts: str | None, refusal: str | None) -> Wanted:
    """A video, or why one of its name is not even tried."""
    if refusal is None:
        return Wanted(video, prompts)
    where = shown(video)
    return Wanted(where, None, VideoError("a video whose name can be handled", f"{where}: {refusal}", "rename it"))


def _missing(item: str, expected: str, got: str) -> Wanted:
    return Wanted(item, None, VideoError(expected, f"{got} at {item}", "check the path"))
