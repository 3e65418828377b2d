"""Pictures of items: decoded in the background once an item is claimed, kept within bounds; else the stored ones."""

from __future__ import annotations

import io
import logging
import re
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import MasksieveError, UnavailableError, VideoError
from pipeline.ledger import Ledger
from pipeline.review.candidates import offered
from pipeline.review.editor import Candidate, Editor
from pipeline.review.items import Item
from pipeline.review.refusals import NotFound
from pipeline.review.shown import Shown, ShownMasks
from pipeline.review_images import jpeg_bytes
from pipeline.rle import decode
from pipeline.settings import Settings
from pipeline.source import local_video, told_by_address
from pipeline.storage.objects import ObjectStore
from pipeline.storage.secrets import masked
from pipeline.video.probe import VideoInfo, probe_video
from pipeline.video.stream import FrameStream
from usam.image import EncodedImage

log = logging.getLogger(__name__)

DECODERS = 2
QUALITY = 90
KEPT_PICTURES_BYTES, KEPT_ITEMS = 256 << 20, 256
KEPT_VIDEOS = 4
"""Downloads that are kept at a time."""
WAIT_SECONDS = 120.0
AGAIN_SECONDS = 30.0
"""A video that could not be shown is not tried again before: it may be gone for good, or the store for a moment."""
_STORED = re.compile(r"review_images/[0-9a-f]{64}/\d{6,}/\d{8,}\.jpg$")  # wherever the output lay then


@dataclass
class _Pictures:
    """Frames of one item as JPEG of the video's size; `note` says why there are none but the stored one, and holds
    until a monotonic time."""

    jpegs: dict[int, bytes] = field(default_factory=dict)
    note: str | None = None
    until: float = 0.0
    features: dict[int, EncodedImage] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.jpegs.values())) + sum(_bytes(one) for one in self.features.values())


class Media:
    """Frames, masks and candidates of items; threads share one.

    Args:
        store: the output.
        settings: decode, storage, review.loop_frames, output.scratch_dir.
        editor: gives the editor, once it is loaded.
    """

    def __init__(self, store: ObjectStore, settings: Settings, editor: Callable[[], Editor]) -> None:
        self._store, self._settings, self.editor = store, settings, editor
        self._ledger = Ledger(store)
        self.masks = ShownMasks(store)
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Future[_Pictures]] = OrderedDict()
        self._candidates: OrderedDict[str, list[Candidate]] = OrderedDict()
        self._pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="masksieve-media")
        self._videos = _Videos(settings)

    def prepare(self, item: Item) -> Future[_Pictures]:
        """Begin to decode an item's frames, unless that was begun; again where it failed a while ago."""
        with self._lock:
            if item.item_id not in self._kept or _failed_long_ago(self._kept[item.item_id]):
                self._kept[item.item_id] = self._pool.submit(self._decode, item)
            self._kept.move_to_end(item.item_id)
            self._drop_oldest()
            return self._kept[item.item_id]

    def note(self, item: Item) -> str | None:
        """Why the video cannot be shown; None if it can. Raises UnavailableError while nobody knows."""
        return _ready(self.prepare(item)).note

    def jpeg(self, item: Item, frame_index: int, width: int | None = None) -> bytes:
        """A frame of an item's strip.

        Args:   width: px, of a smaller picture; the video's where None or larger.
        Raises: NotFound for a frame that is not shown of this item, or that nobody can show; UnavailableError if it
            takes too long.
        """
        pictures = self.prepare(item)
        if frame_index == item.frame_index and not pictures.done() and (stored := self._stored(item)):
            return _narrowed(stored, width)
        found = _ready(pictures)
        data = found.jpegs.get(frame_index)
        if data is None:
            got = found.note or f"{len(found.jpegs)} others"
            raise NotFound(f"a picture of frame {frame_index}", got, "ask for a frame that the strip names")
        return _narrowed(data, width)

    def features(self, item: Item, frame_index: int) -> EncodedImage:
        """What the editor's model sees on a frame; made once. Raises NotFound as `jpeg`, ModelError."""
        pictures = _ready(self.prepare(item))
        if frame_index not in pictures.features:
            data = self.jpeg(item, frame_index)
            pictures.features[frame_index] = self.editor().features(np.array(Image.open(io.BytesIO(data))))
        return pictures.features[frame_index]

    def candidates(self, item: Item) -> list[Candidate]:
        """Three masks of the representative frame: those that were offered when it was labelled, if they were kept, or
        else other readings of the mask that is shown."""
        with self._lock:
            if (kept := self._candidates.get(item.item_id)) is not None:
                return kept
        size = item.height, item.width
        row = self.masks.of(item).rows[item.frame_index]
        found = offered(self._ledger, item, row)
        if found is None:
            shown_hw = np.zeros(size, bool) if row.counts is None else decode(row.counts, *size)
            found = self.editor().candidates(self.features(item, item.frame_index), shown_hw, size)
        with self._lock:
            self._candidates[item.item_id] = found
            while len(self._candidates) > 64:
                self._candidates.popitem(last=False)
        return found

    def close(self) -> None:
        """End what is under way and remove downloads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._videos.close()

    def _decode(self, item: Item) -> _Pictures:
        pictures = _Pictures()
        try:
            shown = self.masks.of(item)
            wanted = _wanted(shown, item, self._settings.review.loop_frames)
            self._videos.with_video(item, lambda info: self._read(info, item, wanted, pictures))
        except (MasksieveError, OSError) as error:
            log.info("frames of %s cannot be shown: %s", item.item_id, error)
            pictures.note = masked(f"the video cannot be shown: {error}")
            pictures.until = time.monotonic() + AGAIN_SECONDS
            pictures.jpegs.clear()
            if stored := self._stored(item):
                pictures.jpegs[item.frame_index] = stored
        return pictures

    def _read(self, info: VideoInfo, item: Item, wanted: list[int], pictures: _Pictures) -> None:
        if (info.height, info.width) != (item.height, item.width):
            got = f"{info.width} x {info.height}"
            raise VideoError(f"a video of {item.width} x {item.height}", got, "label it again")
        with FrameStream(info, self._settings.decode, indices=wanted) as stream:
            for frame in stream:
                pictures.jpegs[frame.index] = jpeg_bytes(frame.rgb_hw3, QUALITY)
                if frame.index == item.frame_index:
                    try:
                        pictures.features[frame.index] = self.editor().features(frame.rgb_hw3)
                    except MasksieveError as error:
                        log.warning("no masks can be made: %s", error)

    def _stored(self, item: Item) -> bytes | None:
        """The picture that was made when the video was labelled, if it lies in this output."""
        named = _STORED.search(item.frame_uri or "")
        if named is None:
            return None
        try:
            return self._store.get(named[0])
        except MasksieveError:
            return None

    def _drop_oldest(self) -> None:
        """Keep at most so many bytes and items; what is not done yet stays."""
        done = {name: future.result().size_bytes for name, future in self._kept.items() if _is_there(future)}
        total = sum(done.values())
        for name in list(done)[:-1]:
            if total <= KEPT_PICTURES_BYTES and len(self._kept) <= KEPT_ITEMS:
                return
            total -= done[name]
            del self._kept[name]


class _Videos:
    """Videos on local disk: those that lie there, and the last few that were downloaded."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Video] = OrderedDict()
        scratch = settings.output.scratch_dir
        self._folder = Path(tempfile.mkdtemp(prefix="masksieve-review-", dir=scratch))

    def with_video(self, item: Item, work: Callable[[VideoInfo], None]) -> None:
        """Do something with an item's video while it is on disk. Raises VideoError, StorageError."""
        with self._lock:
            entry = self._entries.setdefault(item.video_id, _Video())
            self._entries.move_to_end(item.video_id)
            entry.users += 1
        try:
            with entry.lock:
                if entry.info is None:
                    entry.info = self._bring(item, entry)
            work(entry.info)
        finally:
            with self._lock:
                entry.users -= 1
                if entry.info is None and not entry.users:
                    self._entries.pop(item.video_id, None)
                self._drop_unused()

    def close(self) -> None:
        with self._lock:
            for entry in self._entries.values():
                entry.stack.close()
            self._entries.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _bring(self, item: Item, entry: _Video) -> VideoInfo:
        folder = self._folder / item.video_id[:32]
        folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            local = stack.enter_context(local_video(item.video_uri, self._settings.storage, folder))
            if local.video_id != item.video_id:
                raise VideoError("the bytes that were labelled", "a video that has changed since", "label it again")
            with told_by_address(local):
                info = probe_video(local.path, self._settings.decode)
            entry.stack = stack.pop_all()
        return info

    def _drop_unused(self) -> None:
        unused = [name for name, entry in self._entries.items() if not entry.users]
        for name in unused[: max(0, len(self._entries) - KEPT_VIDEOS)]:
            self._entries.pop(name).stack.close()


@dataclass
class _Video:
    lock: threading.Lock = field(default_factory=threading.Lock)
    info: VideoInfo | None = None
    stack: ExitStack = field(default_factory=ExitStack)
    users: int = 0


def _wanted(shown: Shown, item: Item, most: int) -> list[int]:
    return [row.frame_index for row in shown.loop(item.frame_index, most)]


def _ready(pictures: Future[_Pictures]) -> _Pictures:
    try:
        return pictures.result(WAIT_SECONDS)
    except TimeoutError:
        raise UnavailableError(f"frames of the video within {WAIT_SECONDS:g} s", "none yet", "ask again") from None


def _failed_long_ago(future: Future[_Pictures]) -> bool:
    return _is_there(future) and future.result().note is not None and future.result().until < time.monotonic()


def _is_there(future: Future[_Pictures]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _bytes(features: EncodedImage) -> int:
    return sum(one.nbytes for one in (features.features_1chw, *(features.high_res or ())))


def _narrowed(jpeg: bytes, width: int | None) -> bytes:
    """The picture at a width, where that is less than its own."""
    if width is None:
        return jpeg
    picture = Image.open(io.BytesIO(jpeg))
    if width >= picture.width:
        return jpeg
    height = max(1, round(picture.height * width / picture.width))
    picture.draft("RGB", (width, height))
    pixels: NDArray[np.uint8] = np.asarray(picture.convert("RGB"))
    return jpeg_bytes(pixels, QUALITY, (height, width))
