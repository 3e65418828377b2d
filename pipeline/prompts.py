"""What a person asked to follow: clicks, boxes and masks per object, read strictly.

A prompts file (`clip.prompts.json` beside `clip.mp4`), all coordinates in pixels of the video as presented:

    {"version": 1,
     "objects": [
       {"object_id": 1,                      int >= 0, once per file
        "label": "cup",                      text or null, may be left out
        "prompts": [                         at least one; each frame at most once per object
          {"frame_index": 0,                 presented-frame index from 0
           "points": [[655, 424, 1]],        x, y, label: 1 foreground, 0 background
           "box": [600, 380, 720, 470]},     x0, y0, x1, y1; alone or with points
          {"frame_index": 40,
           "mask": {"size": [720, 1280], "counts": "..."}}   COCO RLE, or the path of a one-channel PNG beside the file
        ]}]}

A frame's prompt is points with at least one foreground point, a box with or without points, or a mask alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PromptError
from pipeline.prompt_masks import mask_from_picture, mask_from_rle, runs_of
from pipeline.suggest import did_you_mean

if TYPE_CHECKING:
    from pipeline.video.probe import VideoInfo

VERSION = 1
MAX_ID = 2**31 - 1
PromptKind = Literal["click", "box", "mask", "auto"]


@dataclass(frozen=True, eq=False)
class FramePrompt:
    """What marks one object on one frame.

    Args:
        frame_index: presented-frame index from 0.
        points_n2: (n, 2) float32 x, y in px, or None.
        labels_n: (n,) int32, 1 foreground, 0 background, or None.
        box_xyxy: (4,) float32 in px, or None.
        mask_hw: (H, W) bool at the video's size, or None.
        auto: the product proposed it; no file can say so.
    """

    frame_index: int
    points_n2: NDArray[np.float32] | None = None
    labels_n: NDArray[np.int32] | None = None
    box_xyxy: NDArray[np.float32] | None = None
    mask_hw: NDArray[np.bool_] | None = None
    auto: bool = False

    @property
    def kind(self) -> PromptKind:
        """ "auto" if nobody gave it, else "mask", else "box" (with or without points), else "click"."""
        if self.auto:
            return "auto"
        if self.mask_hw is not None:
            return "mask"
        return "click" if self.box_xyxy is None else "box"

    @property
    def auto_xyxy(self) -> tuple[float, ...] | None:
        """The box if nobody gave it: prompts that a person gave are in their file, these nowhere but in the facts."""
        return tuple(self.box_xyxy.tolist()) if self.auto and self.box_xyxy is not None else None


@dataclass(frozen=True, eq=False)
class ObjectPrompts:
    """All prompts of one object, ascending by frame, at least one.

    Args:
        earliest: the reverse pass follows the object back to this frame and no further.
    """

    object_id: int
    label: str | None
    frames: tuple[FramePrompt, ...]
    earliest: int = 0

    @property
    def auto(self) -> bool:
        """Whether no person gave any of its prompts."""
        return all(prompt.auto for prompt in self.frames)


@dataclass(frozen=True, eq=False)
class PromptSet:
    """The prompts of one video, ascending by object_id; no object where they are yet to be found automatically.

    Args:
        objects: objects with their prompts.
        sha256: hash of the content in its one canonical form: the same prompts in another order, spelling or file
            (an RLE mask or the PNG of it) have the same hash. Of a set without objects: of how they will be found.
        source: where they came from, for messages.
    """

    objects: tuple[ObjectPrompts, ...]
    sha256: str
    source: str

    def to_json(self) -> str:
        """The canonical content. `parse_prompts` reads it back to the same hash, if a person gave all of it.

        It refuses what only the product says: `auto` prompts, an `earliest` frame, a set without objects.
        """
        return _canonical(self.objects)

    def validate(self, info: VideoInfo) -> None:
        """Check that every prompt lies on the video.

        Raises: PromptError for a frame that the video does not have, a point or box off the picture, a mask of another
            size.
        """
        for item in self.objects:
            for prompt in item.frames:
                where = f"object {item.object_id} in {self.source}"
                if prompt.frame_index >= info.num_frames:
                    expected, step = f"a frame in 0..{info.num_frames - 1} of {info.path.name}", "correct frame_index"
                    if info.damage is not None:
                        expected += f", which is damaged from frame {info.num_frames} on"
                        step = "prompt on an earlier frame, or copy or download the video again"
                    raise PromptError(expected, f"frame {prompt.frame_index} for {where}", step)
                _require_on_picture(prompt, info.width, info.height, f"frame {prompt.frame_index} of {where}")


def load_prompts(path: str | Path) -> PromptSet:
    """Read a prompts file; masks that it names are looked up beside it.

    Raises: PromptError when it is missing, unreadable or malformed.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise PromptError("a prompts file", f"no such file: {path}", "write one, see pipeline/prompts.py") from error
    except OSError as error:
        raise PromptError("a readable prompts file", f"{path} ({error.strerror})", "check the path") from error
    return parse_prompts(data, source=str(path), base_dir=path.parent)


def parse_prompts(data: bytes | Mapping[str, Any], *, source: str, base_dir: Path | None = None) -> PromptSet:
    """Read prompts from JSON bytes or from the same structure as a dictionary.

    Args:
        data: version 1 as in this file's docstring.
        source: where it came from, for messages.
        base_dir: folder below which mask pictures may lie; None allows inline masks only.

    Returns: PromptSet, not yet checked against a video (`validate` does).
    Raises: PromptError: not JSON, an unknown version or key, a wrong type, no objects, an object without prompts, an
        object_id or a frame given twice, no foreground point, a box without area, an empty mask.
    """
    root = _Reader(_load(data, source), source)
    root.require_keys({"version", "objects"}, optional=frozenset())
    version = root.value["version"]
    if type(version) is not int or version != VERSION:
        raise PromptError(
            f"prompts of version {VERSION}", f"version {version!r} in {source}", "write them as version 1"
        )
    entries = root.array("objects")
    if not entries:
        raise PromptError("at least one object", f"none in {source}", "add an object with a click, box or mask")
    objects = [
        _object(_Reader(entry, f"objects[{i}] in {source}"), source, base_dir) for i, entry in enumerate(entries)
    ]
    objects.sort(key=lambda item: item.object_id)
    for before, after in pairwise(objects):
        if before.object_id == after.object_id:
            got = f"object_id {after.object_id} twice in {source}"
            raise PromptError("each object_id once", got, "merge their prompts or number one anew")
    return prompt_set(objects, source)


def prompt_set(objects: Iterable[ObjectPrompts], source: str) -> PromptSet:
    """Objects of one video as a set, with the hash of their content.

    Args:    objects: each object_id once, each with its frames ascending.
             source: where they came from, for messages.
    """
    found = tuple(sorted(objects, key=lambda one: one.object_id))
    return PromptSet(found, hashlib.sha256(_canonical(found).encode()).hexdigest(), source)


def _load(data: bytes | Mapping[str, Any], source: str) -> Any:
    if isinstance(data, Mapping):
        return dict(data)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PromptError("prompts as JSON", f"{source} ({error})", "correct or write the file again") from error


class _Reader:
    """One JSON object under a name for messages."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise PromptError("a JSON object", f"{_short(value)} for {where}", "see the schema in pipeline/prompts.py")
        self.value: dict[str, Any] = value
        self.where = where

    def require_keys(self, required: set[str], optional: frozenset[str]) -> None:
        for key in self.value:
            if key not in required | optional:
                expected = f"keys {', '.join(sorted(required | optional))}"
                raise PromptError(expected, f"{key!r} in {self.where}", did_you_mean(str(key), required | optional))
        for key in sorted(required - self.value.keys()):
            raise PromptError(f"a key {key!r}", f"none in {self.where}", "add it")

    def array(self, key: str) -> list[Any]:
        value = self.value[key]
        if not isinstance(value, list):
            raise PromptError(f"{key} as a list", f"{_short(value)} in {self.where}", f"write {key} as a JSON list")
        return value

    def whole(self, key: str) -> int:
        value = self.value[key]
        if type(value) is not int or not 0 <= value <= MAX_ID:
            expected = f"{key} as a whole number from 0 to {MAX_ID}"
            raise PromptError(expected, f"{_short(value)} in {self.where}", f"correct {key}")
        return int(value)


def _object(entry: _Reader, source: str, base_dir: Path | None) -> ObjectPrompts:
    entry.require_keys({"object_id", "prompts"}, optional=frozenset({"label"}))
    object_id = entry.whole("object_id")
    label = entry.value.get("label")
    if label is not None and not isinstance(label, str):
        raise PromptError("label as text or null", f"{_short(label)} in {entry.where}", "correct label")
    where = f"object {object_id} in {source}"
    prompts = entry.array("prompts")
    if not prompts:
        raise PromptError("at least one prompt per object", f"none for {where}", "add a click, box or mask")
    frames = sorted((_frame(_Reader(p, f"a prompt of {where}"), where, base_dir) for p in prompts), key=_frame_index)
    for before, after in pairwise(frames):
        if before.frame_index == after.frame_index:
            raise PromptError(
                "each frame once per object", f"frame {after.frame_index} twice for {where}", "merge them"
            )
    return ObjectPrompts(object_id, label, tuple(frames))


def _frame_index(prompt: FramePrompt) -> int:
    return prompt.frame_index


def _frame(entry: _Reader, where: str, base_dir: Path | None) -> FramePrompt:
    entry.require_keys({"frame_index"}, optional=frozenset({"points", "box", "mask"}))
    index = entry.whole("frame_index")
    where = f"frame {index} of {where}"
    given = {key for key in ("points", "box", "mask") if entry.value.get(key) is not None}
    if not given:
        raise PromptError("points, a box or a mask", f"none on {where}", "add one")
    if "mask" in given:
        if len(given) > 1:
            raise PromptError("a mask alone", f"{' and '.join(sorted(given))} on {where}", "give one of them")
        return FramePrompt(index, mask_hw=_mask(entry.value["mask"], where, base_dir))
    box = _box(entry.value["box"], where) if "box" in given else None
    if "points" not in given:
        return FramePrompt(index, box_xyxy=box)
    points, labels = _points(entry.array("points"), where)
    if box is None and not labels.any():
        got = "none" if not len(labels) else "background points only"
        raise PromptError(
            "at least one foreground point [x, y, 1]", f"{got} on {where}", "add a foreground point or a box"
        )
    if not len(labels):
        return FramePrompt(index, box_xyxy=box)
    return FramePrompt(index, points_n2=points, labels_n=labels, box_xyxy=box)


def _points(values: list[Any], where: str) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    for value in values:
        if not isinstance(value, list) or len(value) != 3 or not all(map(_is_number, value)) or value[2] not in (0, 1):
            raise PromptError("points [x, y, 1 or 0]", f"{_short(value)} on {where}", "correct the point")
    points = np.asarray([value[:2] for value in values], dtype=np.float32).reshape(-1, 2)
    return points, np.asarray([value[2] for value in values], dtype=np.int32)


def _box(value: Any, where: str) -> NDArray[np.float32]:
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise PromptError("a box [x0, y0, x1, y1]", f"{_short(value)} on {where}", "correct the box")
    if value[2] <= value[0] or value[3] <= value[1]:
        raise PromptError(
            "a box with x0 < x1 and y0 < y1", f"{_short(value)} on {where}", "swap or correct its corners"
        )
    return np.asarray(value, dtype=np.float32)


def _mask(value: Any, where: str, base_dir: Path | None) -> NDArray[np.bool_]:
    if isinstance(value, dict):
        mask_hw = mask_from_rle(value, where)
    elif isinstance(value, str) and value:
        mask_hw = mask_from_picture(value, base_dir, where)
    else:
        raise PromptError("a mask as COCO RLE or as a path", f"{_short(value)} on {where}", "correct the mask")
    if not mask_hw.any():
        raise PromptError("a mask with foreground", f"an empty one on {where}", "draw the object or drop the prompt")
    return mask_hw


def _is_number(value: Any) -> bool:
    """An int or float that is a sane coordinate (neither NaN nor infinite, which are below nothing)."""
    return type(value) in (int, float) and abs(value) < 1e6


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _require_on_picture(prompt: FramePrompt, width: int, height: int, where: str) -> None:
    if prompt.points_n2 is not None:
        for x, y in prompt.points_n2.tolist():
            if not (0 <= x < width and 0 <= y < height):
                expected = f"points inside the {width}x{height} picture"
                raise PromptError(expected, f"({x:g}, {y:g}) on {where}", "give pixels of the video's own size")
    if prompt.box_xyxy is not None:
        x0, y0, x1, y1 = prompt.box_xyxy.tolist()
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            expected = f"a box inside the {width}x{height} picture"
            raise PromptError(expected, f"[{x0:g}, {y0:g}, {x1:g}, {y1:g}] on {where}", "clip it to the picture")
    if prompt.mask_hw is not None and prompt.mask_hw.shape != (height, width):
        got = f"{prompt.mask_hw.shape[1]}x{prompt.mask_hw.shape[0]} on {where}"
        raise PromptError(f"a mask of {width}x{height}", got, "draw it at the video's own size")


def _canonical(objects: tuple[ObjectPrompts, ...]) -> str:
    content = {"version": VERSION, "objects": [_plain_object(item) for item in objects]}
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _plain_object(item: ObjectPrompts) -> dict[str, Any]:
    plain = {"object_id": item.object_id, "label": item.label, "prompts": [_plain_frame(f) for f in item.frames]}
    return {**plain, "earliest": item.earliest} if item.earliest else plain


def _plain_frame(prompt: FramePrompt) -> dict[str, Any]:
    plain: dict[str, Any] = {"frame_index": prompt.frame_index}
    if prompt.points_n2 is not None and prompt.labels_n is not None:
        pairs = zip(prompt.points_n2.tolist(), prompt.labels_n.tolist(), strict=True)
        plain["points"] = [[x, y, label] for (x, y), label in pairs]
    if prompt.box_xyxy is not None:
        plain["box"] = prompt.box_xyxy.tolist()
    if prompt.mask_hw is not None:
        plain["mask"] = {"size": list(prompt.mask_hw.shape), "counts": runs_of(prompt.mask_hw)}
    if prompt.auto:
        plain["auto"] = True
    return plain
