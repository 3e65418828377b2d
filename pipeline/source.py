"""Brings a video to local disk and names it by its content."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.checksum import file_sha256
from pipeline.errors import MasksieveError, PromptError, StorageError, UnavailableError, VideoError
from pipeline.names import local_path
from pipeline.prompts import PromptSet, load_prompts, parse_prompts
from pipeline.scratch import RESERVE_BYTES
from pipeline.settings import StorageSettings


@dataclass(frozen=True)
class LocalVideo:
    """A video that lies on local disk.

    Args:
        path: the file.
        video_id: SHA-256 of its bytes, lower-case hex.
        uri: where it came from, as the rows will say.
    """

    path: Path
    video_id: str
    uri: str


@contextmanager
def told_by_address(local: LocalVideo) -> Iterator[None]:
    """Errors of the block name the video by where it came from, not by the download that ends with the run."""
    try:
        yield
    except MasksieveError as error:
        if "://" in local.uri:
            error.rename(str(local.path), local.uri)
        raise


def split_url(url: str) -> tuple[str, str]:
    """An s3:// URL as (folder URL, object name)."""
    folder, _, name = url.rpartition("/")
    return folder, name


def video_sha256(path: Path) -> str:
    """The video_id of a local file. Raises VideoError if it cannot be read."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise VideoError(f"a readable video at {path}", str(error.strerror), "check its permissions") from error


@contextmanager
def local_video(
    video: str,
    storage: StorageSettings,
    scratch: Path,
    *,
    stop: threading.Event | None = None,
    reserve_bytes: int = RESERVE_BYTES,
) -> Iterator[LocalVideo]:
    """The video on local disk for the length of the block; a download is removed at its end.

    Args:
        video: a local path or an s3:// URL.
        storage: how s3:// is reached.
        scratch: folder for a download.
        stop: set by another thread to call a download off.
        reserve_bytes: disk that must stay free beside a download.
    Raises: VideoError if there is no such file; StorageError, DiskSpaceError from the store.
    """
    if "://" in video:
        from pipeline.storage.objects import ObjectStore

        folder, name = split_url(video)
        target = scratch / f"source{PurePosixPath(name).suffix}"
        try:
            digest = ObjectStore(folder, storage).get_file(name, target, stop=stop, reserve_bytes=reserve_bytes)
            yield LocalVideo(target, digest, video)
        finally:
            target.unlink(missing_ok=True)
        return
    path = local_path(video)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing"
        raise VideoError(f"a video file at {video}", got, "check the path")
    yield LocalVideo(path, video_sha256(path), str(path.resolve()))


def source_exists(video: str, storage: StorageSettings) -> bool:
    """Whether a video still lies where it was. Raises StorageError if its store cannot say."""
    if "://" not in video:
        return Path(video).is_file()
    from pipeline.storage.objects import ObjectStore

    folder, name = split_url(video)
    return ObjectStore(folder, storage).exists(name)


def find_prompts(prompts: str | Path | PromptSet | None, video: str, storage: StorageSettings) -> PromptSet:
    """The prompts that were given.

    Raises: UnavailableError if their store does not answer; PromptError if there are none (the message says how to go
            on), or they cannot be read. A set without objects is none: how objects are found automatically is for the
            settings alone to say.
    """
    if isinstance(prompts, PromptSet):
        if not prompts.objects:
            raise PromptError(
                f"at least one object in the prompts for {video}",
                f"none in {prompts.source}",
                "add one, or pass None with prompts.on_missing: auto",
            )
        return prompts
    if prompts is None:
        stem = PurePosixPath(video).stem
        raise PromptError(
            f"prompts for {video}",
            f"no {stem}.prompts.json beside it",
            "write one (README, Prompts), pass --prompts FILE, or let objects be found with --auto-prompts",
        )
    if "://" in str(prompts):
        from pipeline.storage.objects import ObjectStore

        folder, name = split_url(str(prompts))
        try:
            data = ObjectStore(folder, storage).get(name)
        except UnavailableError:  # the store's fault, not that of who wrote them
            raise
        except StorageError as error:
            raise PromptError(f"prompts at {prompts}", str(error), "check the address") from error
        return parse_prompts(data, source=str(prompts))
    return load_prompts(prompts)
