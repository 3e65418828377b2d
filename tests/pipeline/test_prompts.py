"""Prompts: what is read, what is refused and in which words, and that the hash follows the content only."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco

from pipeline.errors import PromptError, UnavailableError
from pipeline.prompt_masks import mask_from_rle, runs_of
from pipeline.prompts import load_prompts, parse_prompts, prompt_set
from pipeline.settings import StorageSettings
from pipeline.source import find_prompts
from pipeline.video.probe import VideoInfo

CLIPS = Path(__file__).parents[3] / "shared" / "data" / "clips"
INFO = VideoInfo(Path("clip.mp4"), 64, 48, 10, 25.0, 0.4, "h264", "mov", 0, "decord", "test")


def doc(*frames: dict[str, Any], object_id: Any = 1) -> dict[str, Any]:
    return {"version": 1, "objects": [{"object_id": object_id, "prompts": list(frames)}]}


def click(frame_index: int = 0, x: float = 5, y: float = 6, label: int = 1) -> dict[str, Any]:
    return {"frame_index": frame_index, "points": [[x, y, label]]}


def rle(mask_hw: np.ndarray[Any, Any]) -> dict[str, Any]:
    found = coco.encode(np.asfortranarray(mask_hw.astype(np.uint8)))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}


def parse(data: Any, base_dir: Path | None = None) -> Any:
    return parse_prompts(data, source="clip.prompts.json", base_dir=base_dir)


@pytest.fixture
def mask_hw() -> np.ndarray[Any, Any]:
    mask = np.zeros((48, 64), bool)
    mask[10:20, 0:30] = True
    return mask


def test_reads_clicks_boxes_and_masks_in_order(mask_hw: np.ndarray[Any, Any]) -> None:
    box = {"frame_index": 2, "box": [1, 2, 30, 40], "points": [[3, 4, 1], [5, 6, 0]]}
    entries = [
        {"object_id": 7, "label": "cup", "prompts": [{"frame_index": 9, "mask": rle(mask_hw)}, box]},
        {"object_id": 3, "label": None, "prompts": [click()]},
    ]
    prompts = parse({"version": 1, "objects": entries})
    prompts.validate(INFO)
    assert [item.object_id for item in prompts.objects] == [3, 7]
    assert [item.label for item in prompts.objects] == [None, "cup"]
    assert [(f.frame_index, f.kind) for item in prompts.objects for f in item.frames] == [
        (0, "click"),
        (2, "box"),
        (9, "mask"),
    ]
    boxed, masked = prompts.objects[1].frames
    np.testing.assert_array_equal(boxed.points_n2, np.array([[3, 4], [5, 6]], np.float32))
    np.testing.assert_array_equal(boxed.labels_n, np.array([1, 0], np.int32))
    np.testing.assert_array_equal(boxed.box_xyxy, np.array([1, 2, 30, 40], np.float32))
    np.testing.assert_array_equal(masked.mask_hw, mask_hw)


def test_hash_follows_content_not_spelling(tmp_path: Path, mask_hw: np.ndarray[Any, Any]) -> None:
    Image.fromarray(mask_hw).save(tmp_path / "mask.png")
    inline = parse(doc(click(0), {"frame_index": 1, "mask": rle(mask_hw)}))
    picture = parse(doc({"frame_index": 1, "mask": "mask.png"}, click(0, 5.0, 6.0)), tmp_path)
    assert inline.sha256 == picture.sha256
    assert parse(inline.to_json().encode()).sha256 == inline.sha256
    assert parse(doc(click(0))).sha256 != inline.sha256
    assert parse(doc(click(0), object_id=2)).sha256 != parse(doc(click(0))).sha256


def test_how_far_back_an_object_is_followed_is_content() -> None:
    given = parse(doc(click(5)))
    assert (
        given.sha256 == "1d0bc996ce7b70c498cb0e5d9eae24e7790f183f12cd9d31343b4c832d862359"
    )  # what was labelled before stays the same work
    bounded = prompt_set([dataclasses.replace(given.objects[0], earliest=3)], "test")
    assert bounded.sha256 != given.sha256
    assert json.loads(bounded.to_json())["objects"][0]["earliest"] == 3
    with pytest.raises(PromptError, match="'earliest'"):
        parse(bounded.to_json().encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not json", "expected prompts as JSON, got clip.prompts.json"),
        (b"\xff\xfe\x00", "expected prompts as JSON"),
        (b"[" * 200_000, "expected prompts as JSON"),
        ([], "expected a JSON object"),
        ({"version": 2, "objects": []}, "expected prompts of version 1, got version 2"),
        ({"objects": []}, "expected a key 'version'"),
        ({"version": 1, "objects": []}, "expected at least one object"),
        ({"version": 1, "objects": {}}, "expected objects as a list"),
        ({"version": 1, "objects": [3]}, r"expected a JSON object, got 3 for objects\[0\]"),
        ({"version": 1, "object": []}, "did you mean 'objects'"),
        (doc(), "expected at least one prompt per object, got none for object 1"),
        (doc(click(), object_id=True), "expected object_id as a whole number"),
        (doc(click(), object_id=-1), "expected object_id as a whole number"),
        (doc(click(), object_id="1"), "expected object_id as a whole number"),
        (doc(click(-1)), "expected frame_index as a whole number"),
        (doc({"frame_index": 0.0, "points": [[1, 1, 1]]}), "expected frame_index as a whole number"),
        (doc(click(3), click(3)), "expected each frame once per object, got frame 3 twice for object 1"),
        (doc({"frame_index": 0}), "expected points, a box or a mask, got none on frame 0 of object 1"),
        (doc({"frame_index": 0, "points": []}), r"expected at least one foreground point \[x, y, 1\], got none"),
        (doc(click(label=0)), r"expected at least one foreground point \[x, y, 1\], got background points only"),
        (doc(click(label=2)), "expected points"),
        (doc(click(x=float("nan"))), "expected points"),
        (doc({"frame_index": 0, "points": [[1, 2]]}), "expected points"),
        (doc({"frame_index": 0, "points": 5}), "expected points as a list"),
        (doc({"frame_index": 0, "box": [1, 2, 3]}), r"expected a box \[x0"),
        (doc({"frame_index": 0, "box": [5, 2, 5, 9]}), "expected a box with x0 < x1"),
        (doc({"frame_index": 0, "pionts": [[1, 2, 1]]}), "did you mean 'points'"),
        (doc({"frame_index": 0, "mask": 4}), "expected a mask as COCO RLE or as a path"),
        (doc({"frame_index": 0, "mask": "a.png"}), "without a folder"),
        (doc({"frame_index": 0, "mask": {"size": [4, 4], "counts": [16]}}), "expected a mask with foreground"),
        (doc({"frame_index": 0, "mask": {"size": [4, 4], "counts": [4, 4]}}), "expected mask runs that add up to"),
        (doc({"frame_index": 0, "mask": {"size": [4, 4], "counts": [-4, 20]}}), "expected mask runs that add up to"),
        (doc({"frame_index": 0, "mask": {"size": [4, 4], "counts": "\u20ac"}}), "counts with"),
        (doc({"frame_index": 0, "mask": {"size": [4], "counts": "0"}}), "expected a mask"),
        (doc({"frame_index": 0, "mask": {"size": [10**9, 10**9], "counts": [10**18]}}), "expected a mask"),
        (doc({"frame_index": 0, "mask": {"size": [4, 4], "counts": [8, 8]}, "box": [0, 0, 2, 2]}), "a mask alone"),
    ],
)
def test_malformed_prompts_are_refused_in_one_line(data: Any, message: str) -> None:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    with pytest.raises(PromptError, match=message) as caught:
        parse(raw)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


def test_duplicate_object_id_is_refused() -> None:
    data = doc(click())
    data["objects"] *= 2
    with pytest.raises(PromptError, match="expected each object_id once, got object_id 1 twice"):
        parse(data)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (click(10), r"expected a frame in 0..9 of clip.mp4, got frame 10 for object 1"),
        (click(x=64), r"expected points inside the 64x48 picture, got \(64, 6\)"),
        (click(y=-0.5), r"got \(5, -0.5\)"),
        ({"frame_index": 0, "box": [0, 0, 64, 48.5]}, "expected a box inside the 64x48 picture"),
        ({"frame_index": 0, "mask": {"size": [4, 4], "counts": [8, 8]}}, "expected a mask of 64x48, got 4x4"),
    ],
)
def test_prompts_off_the_video_are_refused(frame: dict[str, Any], message: str) -> None:
    prompts = parse(doc(frame))
    with pytest.raises(PromptError, match=message):
        prompts.validate(INFO)


def test_box_may_touch_the_border() -> None:
    parse(doc({"frame_index": 9, "box": [0, 0, 64, 48]})).validate(INFO)


def test_mask_pictures_stay_below_their_folder(tmp_path: Path) -> None:
    inside = tmp_path / "drop"
    inside.mkdir()
    Image.new("L", (4, 4), 255).save(tmp_path / "outside.png")
    (inside / "link.png").symlink_to(tmp_path / "outside.png")
    for name in ("../outside.png", str(tmp_path / "outside.png"), "link.png"):
        with pytest.raises(PromptError, match="expected a mask below"):
            parse(doc({"frame_index": 0, "mask": name}), inside)
    with pytest.raises(PromptError, match="no such file"):
        parse(doc({"frame_index": 0, "mask": "missing.png"}), inside)
    for name in ("a\0b.png", "\ud800.png", "x" * 300 + ".png"):
        with pytest.raises(PromptError, match="mask picture"):
            parse(doc({"frame_index": 0, "mask": name}), inside)


def test_mask_pictures_of_other_kinds_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (4, 4), 0).save(tmp_path / "empty.png")
    for name, message in (
        ("colour.png", "expected a one-channel mask picture"),
        ("text.png", "expected a readable mask picture"),
        ("empty.png", "expected a mask with foreground"),
    ):
        with pytest.raises(PromptError, match=message):
            parse(doc({"frame_index": 0, "mask": name}), tmp_path)


def test_missing_prompts_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no such file"):
        load_prompts(tmp_path / "clip.prompts.json")


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_rle_reading_agrees_with_pycocotools(mask: np.ndarray[Any, Any]) -> None:
    np.testing.assert_array_equal(mask_from_rle(rle(mask), "test"), mask)
    plain = {"size": list(mask.shape), "counts": runs_of(mask)}
    np.testing.assert_array_equal(mask_from_rle(plain, "test"), mask)


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
def test_any_rle_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(PromptError):
        assert mask_from_rle({"size": [6, 7], "counts": text}, "test").shape == (6, 7)


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not beside this checkout")
def test_prompts_of_the_real_clips_are_read() -> None:
    counts = {path.name.split(".")[0]: len(load_prompts(path).objects) for path in CLIPS.glob("*.prompts.json")}
    assert counts == {"bedroom": 2, "blocks": 4, "coffee": 2, "cups": 3, "juggle": 2}


def test_prompts_whose_store_is_away_are_no_wrong_prompts() -> None:
    """An outage is waited for; it does not count against the video."""
    away = StorageSettings.model_validate(
        {"endpoint_url": "http://127.0.0.1:9", "access_key_id": "a", "secret_access_key": "b", "retry_seconds": 0.1}
    )
    with pytest.raises(UnavailableError):
        find_prompts("s3://bucket/v.prompts.json", "s3://bucket/v.mp4", away)
