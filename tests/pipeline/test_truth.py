"""Truth of every format says the same of the same rows, and is refused where it does not fit or contradicts itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import rle
from pipeline.demo import true_ious
from pipeline.judged import Fact, TruthError
from pipeline.storage.objects import ObjectStore
from pipeline.truth import VideoTruth, open_truth, read_truth
from pipeline.truth_masks import IdFrame, judge_masks

Key = tuple[str, int, int]


@pytest.fixture
def clips(night: Path) -> dict[str, np.ndarray]:
    """True ids (T, H, W) of the labelled clips by stem."""
    paths = sorted((night / "night").glob("*.truth.npz"))
    return {path.name.removesuffix(".truth.npz"): np.load(path)["ids_thw"] for path in paths}


@pytest.fixture
def expected(night: Path, clips: dict[str, np.ndarray]) -> dict[Key, float]:
    """IoU of every row with the truth, computed without the module that is tested."""
    found: dict[Key, float] = {}
    for path in (night / "out/masks").rglob("*.parquet"):
        rows = pq.read_table(path, partitioning=None)
        video_id, stem = rows["video_id"][0].as_py(), Path(rows["video_uri"][0].as_py()).stem
        ids_thw = clips[stem.replace("again", "occlusion")]
        found |= {(video_id, *key): iou for key, iou in true_ious(rows, ids_thw).items()}
    assert len({key[0] for key in found}) == 3
    return found


def read(truth: Path, out: Path) -> dict[Key, float]:
    return by_row(list(read_truth(open_truth(truth), ObjectStore(out))))


def by_row(videos: list[VideoTruth]) -> dict[Key, float]:
    found: dict[Key, float] = {}
    for one in videos:
        keys = zip(one.facts["frame_index"].to_pylist(), one.facts["object_id"].to_pylist(), one.iou_n, strict=True)
        found |= {(one.commit.video_id, frame, number): float(iou) for frame, number, iou in keys}
    return found


def as_npz(clips: dict[str, np.ndarray], root: Path, frames: range) -> Path:
    root.mkdir()
    for stem, ids_thw in clips.items():
        np.savez_compressed(root / f"{stem}.truth.npz", ids_thw=ids_thw[: frames.stop])
    return root


def as_davis(clips: dict[str, np.ndarray], root: Path, frames: range) -> Path:
    for stem, ids_thw in clips.items():
        folder = root / "Annotations/480p" / stem
        folder.mkdir(parents=True)
        for index in frames:
            picture = Image.fromarray(ids_thw[index], mode="P")
            picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
            picture.save(folder / f"{index:05d}.png")
    return root


def as_coco(clips: dict[str, np.ndarray], root: Path, frames: range, *, named: bool = False) -> Path:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for stem, ids_thw in clips.items():
        for index in frames:
            height, width = ids_thw.shape[1:]
            about: dict[str, Any] = {"file_name": f"{stem}/{index:05d}.jpg"}
            if named:
                about = {"video": f"{stem}.mp4", "frame_index": index}
            images.append({"id": len(images), "height": height, "width": width, **about})
            for number in np.unique(ids_thw[index])[1:].tolist():
                counts = rle.encode_mask(ids_thw[index] == number).counts.decode()
                annotations.append({
                    "id": len(annotations), "image_id": images[-1]["id"], "track_id" if named else "object_id": number,
                    "segmentation": {"size": [height, width], "counts": counts},
                })  # fmt: skip
    root.write_text(json.dumps({"info": {}, "images": images[::-1], "annotations": annotations[::-1]}))
    return root


def as_rows(clips: dict[str, np.ndarray], root: Path, frames: range) -> Path:
    rows = [
        {"video": stem, "frame_index": index, "object_id": number,
         "height": ids_thw.shape[1], "width": ids_thw.shape[2],
         "rle": rle.encode_mask(ids_thw[index] == number).counts}
        for stem, ids_thw in clips.items() for index in frames for number in range(1, 9)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), root, row_group_size=7)
    return root


FORMATS: dict[str, Callable[..., Path]] = {
    "npz": as_npz, "davis": as_davis, "truth.json": as_coco, "truth.parquet": as_rows,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_says_the_same_of_the_same_rows(
    name: str, clips: dict[str, np.ndarray], expected: dict[Key, float], night: Path, tmp_path: Path
) -> None:
    truth = FORMATS[name](clips, tmp_path / name, range(3))
    assert read(truth, night / "out") == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_frames_without_truth_are_not_judged(
    name: str, clips: dict[str, np.ndarray], expected: dict[Key, float], night: Path, tmp_path: Path
) -> None:
    truth = FORMATS[name](clips, tmp_path / name, range(2))
    assert read(truth, night / "out") == pytest.approx({key: iou for key, iou in expected.items() if key[1] < 2})


def test_images_may_name_video_and_frame_in_fields(
    clips: dict[str, np.ndarray], expected: dict[Key, float], night: Path, tmp_path: Path
) -> None:
    assert read(as_coco(clips, tmp_path / "t.json", range(3), named=True), night / "out") == pytest.approx(expected)


def test_an_object_that_is_not_there_on_an_annotated_frame_is_absent(
    clips: dict[str, np.ndarray], expected: dict[Key, float], night: Path, tmp_path: Path
) -> None:
    gone = {stem: np.where((np.arange(3) == 2)[:, None, None], 0, ids_thw) for stem, ids_thw in clips.items()}
    found = read(as_davis(gone, tmp_path / "davis", range(3)), night / "out")
    area = {
        (row["video_id"], row["frame_index"], row["object_id"]): row["area_px"]
        for row in rows_of(night)
    }  # fmt: skip
    assert {key[1] for key in found} == {0, 1, 2}
    assert all(iou == (1.0 if area[key] == 0 else 0.0) for key, iou in found.items() if key[1] == 2)
    assert all(iou == pytest.approx(expected[key]) for key, iou in found.items() if key[1] < 2)


def test_one_video_under_two_names_is_one(
    clips: dict[str, np.ndarray], expected: dict[Key, float], night: Path, tmp_path: Path
) -> None:
    twice = clips | {"again": clips["occlusion"]}
    truth = as_npz(twice, tmp_path / "npz", range(3))
    found = list(read_truth(open_truth(truth), ObjectStore(night / "out")))
    assert len(found) == 3
    assert by_row(found) == pytest.approx(expected)
    np.savez_compressed(truth / "again.truth.npz", ids_thw=np.where(clips["occlusion"] == 1, 0, clips["occlusion"]))
    with pytest.raises(TruthError, match="one truth of a video"):
        read(truth, night / "out")


def test_truth_that_does_not_fit_is_refused(
    clips: dict[str, np.ndarray], night: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, only = night / "out", {"exit": clips["exit"]}
    other = as_npz({"nobody": clips["exit"]}, tmp_path / "other", range(3))
    with pytest.raises(TruthError, match=r"0 of its videos there.*nobody"):
        read(other, out)
    small = as_davis({"exit": clips["exit"][:, ::2, ::2]}, tmp_path / "small", range(3))
    with pytest.raises(TruthError, match=r"256x256 for video exit, frame 0.*128x128"):
        read(small, out)
    ids = as_npz({"exit": np.where(clips["exit"], clips["exit"] + 50, 0).astype(np.uint8)}, tmp_path / "ids", range(3))
    with pytest.raises(TruthError, match="prompts' object ids"):
        read(ids, out)
    shutil.copytree(as_davis(only, tmp_path / "two", range(1)) / "Annotations/480p", tmp_path / "two/Annotations/Full")
    with pytest.raises(TruthError, match="one resolution"):
        read(tmp_path / "two", out)
    (tmp_path / "empty").mkdir()
    for place, words in (("empty", "neither"), ("nothing", "nothing there")):
        with pytest.raises(TruthError, match=words):
            open_truth(tmp_path / place)
    with pytest.raises(TruthError, match="download it first"):
        open_truth("s3://bucket/truth")
    half = as_npz(only | {"nobody": clips["exit"]}, tmp_path / "half", range(3))
    assert read(half, out)
    assert "not in the output: 1, such as nobody" in caplog.text


@pytest.mark.parametrize(("image", "said"), [
    ({"id": 2**70, "file_name": "v/0.jpg"}, "64 bits"),
    ({"id": 1, "file_name": f"v/{'1' * 5000}.jpg"}, "video and frame"),
])  # fmt: skip
def test_numbers_that_no_frame_can_have_are_refused(image: dict[str, Any], said: str, tmp_path: Path) -> None:
    body = {
        "images": [image | {"height": 4, "width": 4}],
        "annotations": [{"image_id": image["id"], "object_id": 1, "segmentation": []}],
    }
    (tmp_path / "t.json").write_text(json.dumps(body))
    with pytest.raises(TruthError, match=said):
        open_truth(tmp_path / "t.json")


def rows_of(night: Path) -> list[dict[str, Any]]:
    paths = (night / "out/masks").rglob("*.parquet")
    return [
        {name: row[name] for name in ("video_id", "frame_index", "object_id", "area_px")}
        for path in paths for row in pq.read_table(path, partitioning=None).to_pylist()
    ]  # fmt: skip


def written(rows: list[dict[str, Any]], path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_iou_may_be_given_as_it_is(night: Path, tmp_path: Path) -> None:
    rows = [row | {"iou": (number % 5) / 4 if number else None} for number, row in enumerate(rows_of(night))]
    found = read(written(rows, tmp_path / "t.parquet"), night / "out")
    wanted = {(r["video_id"], r["frame_index"], r["object_id"]): r["iou"] for r in rows if r["iou"] is not None}
    assert found == wanted
    for value, words in ((float("nan"), "got nan"), (75.0, "got 75")):
        with pytest.raises(TruthError, match=rf"iou in \[0, 1\], {words}"):
            read(written([rows[1] | {"iou": value}], tmp_path / "bad.parquet"), night / "out")
    with pytest.raises(TruthError, match="two that differ"):
        read(written([rows[1] | {"iou": 0.5}, rows[1] | {"iou": 0.6}], tmp_path / "bad.parquet"), night / "out")
    with pytest.raises(TruthError, match="no rle, height, width in"):
        open_truth(written(rows_of(night), tmp_path / "bad.parquet"))


def test_verdicts_are_weighted_by_how_likely_they_were_asked_for(night: Path, tmp_path: Path) -> None:
    rows = rows_of(night)[:4]
    verdicts = ["accept", "reject", "absent", None]
    said = [row | {"verdict": one, "review_probability": 0.25} for row, one in zip(rows, verdicts, strict=True)]
    found = list(read_truth(open_truth(written(said, tmp_path / "t.parquet")), ObjectStore(night / "out")))
    assert [one.tolist() for one in (found[0].iou_n, found[0].weight_n)] == [
        [1.0, 0.0, 1.0 if rows[2]["area_px"] == 0 else 0.0], [4.0, 4.0, 4.0],
    ]  # fmt: skip
    for probability in (None, 0.0, float("nan"), 2.0):
        bad = written([said[0], said[1] | {"review_probability": probability}], tmp_path / "bad.parquet")
        with pytest.raises(TruthError, match="review_probability in"):
            read(bad, night / "out")
    with pytest.raises(TruthError, match="a verdict out of accept, reject, absent"):
        read(written([said[0] | {"verdict": "fine"}], tmp_path / "bad.parquet"), night / "out")


def test_what_was_said_of_another_mask_is_refused(night: Path, tmp_path: Path) -> None:
    rows = [row | {"iou": 0.5} for row in rows_of(night)[:3]]
    assert len(read(written(rows, tmp_path / "t.parquet"), night / "out")) == 3
    stale = [rows[0], rows[1] | {"area_px": rows[1]["area_px"] + 1}]
    with pytest.raises(TruthError, match="labelled anew since"):
        read(written(stale, tmp_path / "stale.parquet"), night / "out")
    twice = pa.table([[1], [1.0], [1.0]], names=["frame_index", "iou", "iou"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(TruthError, match="iou more often"):
        open_truth(tmp_path / "twice.parquet")


def test_rows_seen_because_they_were_uncertain_count_only_with_a_weight(night: Path, tmp_path: Path) -> None:
    rows = rows_of(night)[:3]
    audited = [row | {"verdict": "accept", "audit": number == 1} for number, row in enumerate(rows)]
    found = list(read_truth(open_truth(written(audited, tmp_path / "t.parquet")), ObjectStore(night / "out")))
    assert found[0].facts["object_id"].to_pylist() == [rows[1]["object_id"]]
    with pytest.raises(TruthError, match="no review_probability or audit"):
        read(written([row | {"verdict": "accept"} for row in rows], tmp_path / "t.parquet"), night / "out")


@given(
    seed=st.integers(0, 10_000), annotated=st.sets(st.integers(0, 5), min_size=1), labelled=st.sets(st.integers(0, 5)),
    absent=st.booleans(),
)  # fmt: skip
def test_iou_is_that_of_the_pixels_whatever_frames_are_annotated_or_labelled(
    seed: int, annotated: set[int], labelled: set[int], absent: bool
) -> None:
    rng = np.random.default_rng(seed)
    truth = {index: rng.integers(0, 3, (5, 7)).astype(np.uint8) for index in annotated}
    for ids in truth.values():
        ids[0, :2] = 1, 2  # no object of the rows is missing altogether
        ids[ids == 2] *= not absent
    masks = {(index, number): rng.random((5, 7)) < rng.choice([0, 0.5]) for index in labelled for number in (1, 2)}
    facts = [
        Fact(*key, 5, 7, rle.encode_mask(mask).counts, int(mask.sum())) for key, mask in sorted(masks.items())
    ]  # fmt: skip
    frames = [(index, IdFrame(ids, "here")) for index, ids in sorted(truth.items())]
    found = {(one.frame_index, one.object_id): one.iou for one in judge_masks("clip", frames, facts)}
    assert set(found) == {key for key in masks if key[0] in annotated}
    for (index, number), iou in found.items():
        mask, true = masks[index, number], truth[index] == number
        union = (mask | true).sum()
        assert iou == pytest.approx((mask & true).sum() / union if union else 1.0)
