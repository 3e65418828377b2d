"""While one video is labelled the next one is downloaded: one ahead, room checked, called off with the run."""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.errors import DiskSpaceError
from pipeline.scratch import scratch_folder
from pipeline.settings import Settings
from pipeline.source import LocalVideo, local_video

if TYPE_CHECKING:
    from pipeline.drops import Wanted

log = logging.getLogger(__name__)

AHEAD_RESERVE_BYTES = 1 << 30
"""Disk that a download ahead leaves to the video that runs."""


class Prefetch:
    """Brings videos to local disk in turn, the next one of a list while its forerunner is worked on; a context manager.

    What lies on disk is at most the running video and the next one; both go with the block, however it ends. A video
    that lies on local disk is not touched ahead.

    Args:
        videos: in the order in which they will be asked for; paths and s3:// URLs.
        settings: storage and scratch folder.
    """

    def __init__(self, videos: Sequence[str], settings: Settings) -> None:
        self._next = dict(itertools.pairwise(videos))
        self._settings = settings
        self._ahead: _Ahead | None = None
        self._root: Path | None = None
        self._stack = ExitStack()

    @classmethod
    def of(cls, wanted: Sequence[Wanted], settings: Settings) -> Prefetch:
        """For the videos of a call that can be tried at all: found, and with prompts unless they may do without."""
        without = settings.prompts.on_missing != "refuse"
        return cls([one.video for one in wanted if one.error is None and (one.prompts or without)], settings)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._drop()
        finally:
            self._stack.close()

    @contextmanager
    def video(self, video: str) -> Iterator[LocalVideo]:
        """The video on local disk for the length of the block; meanwhile the next one comes.

        Raises: what `local_video` raises, also when it happened ahead.
        """
        with ExitStack() as stack:
            ahead = self._take(video)
            source = None if ahead is None else stack.enter_context(ahead.source())
            if source is None:
                folder = self._folder() if _is_remote(video) else Path()
                source = stack.enter_context(local_video(video, self._settings.storage, folder))
            following = self._next.get(video)
            if self._ahead is None and following is not None and _is_remote(following):
                self._ahead = _Ahead(following, self._settings, self._folder())
                self._ahead.start()
            yield source

    def _take(self, video: str) -> _Ahead | None:
        """The download of this video that was begun ahead; one that is no longer of the next video is dropped."""
        if self._ahead is None or self._ahead.video == video:
            ahead, self._ahead = self._ahead, None
            return ahead
        if self._ahead.video != self._next.get(video):  # the next one's stays when this video is tried again
            self._drop()
        return None

    def _drop(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.close()

    def _folder(self) -> Path:
        """A folder of its own for each download, so that equal names do not meet."""
        if self._root is None:
            self._root = Path(self._stack.enter_context(scratch_folder(self._settings)))
        return Path(tempfile.mkdtemp(dir=self._root))


class _Ahead:
    """One download in a thread."""

    def __init__(self, video: str, settings: Settings, folder: Path) -> None:
        self.video, self._settings, self._folder = video, settings, folder
        self._stop = threading.Event()
        self._held = ExitStack()
        self._found: LocalVideo | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="masksieve-prefetch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        fetched = local_video(
            self.video,
            self._settings.storage,
            self._folder,
            stop=self._stop,
            reserve_bytes=AHEAD_RESERVE_BYTES,
        )
        try:
            self._found = self._held.enter_context(fetched)
        except BaseException as error:  # noqa: BLE001 - raised when it is this video's turn
            self._error = error

    @contextmanager
    def source(self) -> Iterator[LocalVideo | None]:
        """Wait for the download. None if there was no room for it beside the video that ran: now there may be."""
        try:
            self._thread.join()
            if isinstance(self._error, DiskSpaceError):
                log.info("%s was not downloaded ahead: %s", self.video, self._error)
            elif self._error is not None:
                raise self._error
            yield self._found
        finally:
            self.close()

    def close(self) -> None:
        """Call the download off, or remove what it brought."""
        self._stop.set()
        self._thread.join()
        self._held.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _is_remote(video: str) -> bool:
    return "://" in video
