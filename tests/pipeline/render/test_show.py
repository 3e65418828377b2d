"""A labelled video turned into pictures, from Parquet as the job writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StorageError, VideoError
from pipeline.records import LABELS, REVIEW, file_metadata
from pipeline.render.film import FilmWriter
from pipeline.render.labelled import read_labelled
from pipeline.render.show import show_video
from pipeline.rle import empty_mask, encode_mask
from pipeline.settings import DecodeSettings, StorageSettings
from pipeline.source import video_sha256

NUM_FRAMES, HEIGHT, WIDTH = 8, 48, 64


def _row(video_id: str, frame: int, object_id: int, *, height: int) -> dict[str, Any]:
    absent = object_id == 2 and frame >= 5
    mask = np.zeros((height, WIDTH), bool)
    mask[10:30, 4 * frame : 4 * frame + 20] = True
    encoded = empty_mask(height, WIDTH) if absent else encode_mask(mask)
    uncertainty = 0.1 * frame
    review = object_id == 2 and frame >= 3
    row: dict[str, Any] = dict.fromkeys([*LABELS.names, *REVIEW.names])
    row |= {
        "video_id": video_id, "video_uri": "clip.mp4", "frame_index": frame, "pts_seconds": frame / 25,
        "object_id": object_id, "label": "shape", "height": height, "width": WIDTH, "rle": encoded.counts,
        "bbox_xyxy": encoded.bbox_xyxy, "visibility": "absent" if absent else "visible",
        "prompted": "click" if frame == 0 else None, "direction": "forward", "score_source": "sam_score",
        "auto": False, "shot_index": 0, "across_cut": False,
        "uncertainty": uncertainty, "decision": "review" if review else "accept",
        "reasons": [f"uncertainty {uncertainty:.2f} > 0.25"] if review else [], "audit": False,
        "review_probability": float(review), "weight": 1 - uncertainty, "policy_id": "p",
        "review_id": "stretch", "representative": frame == 7,
    }  # fmt: skip
    return row


@pytest.fixture
def labelled_folder(tmp_path: Path) -> tuple[Path, Path]:
    """A video of 8 frames, and its labels/ and review/ layers; object 2 is flagged from frame 3 on."""
    return _label(tmp_path)


def _label(folder: Path, *, height: int = HEIGHT) -> tuple[Path, Path]:
    video, labels = folder / "clip.mp4", folder / "out"
    with FilmWriter(video, 25) as film:
        for i in range(NUM_FRAMES):
            film.append(np.full((HEIGHT, WIDTH, 3), 20 * i, np.uint8))
    video_id = video_sha256(video)
    rows = [_row(video_id, frame, object_id, height=height) for frame in range(NUM_FRAMES) for object_id in (1, 2)]
    metadata = file_metadata({"policy": {"max_uncertainty": 0.25, "certificate": None}})
    for layer, schema, chosen in (
        ("labels", LABELS, rows),
        ("review", REVIEW, [row for row in rows if row["decision"] == "review"]),
    ):
        path = labels / layer / "drop=d" / f"{video_id}.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(chosen, schema=schema.with_metadata(metadata)), path)
    return video, labels


def test_the_decisions_of_one_video_are_read_with_their_threshold(labelled_folder: tuple[Path, Path]) -> None:
    video, labels = labelled_folder
    found = read_labelled(str(labels), video_sha256(video), StorageSettings())
    assert found.rows.num_rows == NUM_FRAMES * 2
    assert (found.threshold, found.evidence) == (0.25, "threshold 0.25, uncertified")
    assert found.stretches.select(["frame_index", "object_id"]).to_pylist() == [{"frame_index": 7, "object_id": 2}]


def test_pictures_of_a_labelled_video(labelled_folder: tuple[Path, Path], tmp_path: Path) -> None:
    video, labels = labelled_folder
    found = read_labelled(str(labels), video_sha256(video), StorageSettings())
    seen: list[tuple[int, int]] = []
    pictures = show_video(video, found, tmp_path / "show", DecodeSettings(), progress=lambda *step: seen.append(step))
    assert seen[-1] == (NUM_FRAMES, NUM_FRAMES)
    assert (pictures.frames, pictures.flagged) == (NUM_FRAMES, 1)
    with av.open(str(pictures.overlay)) as film:
        assert sum(1 for _ in film.decode(video=0)) == NUM_FRAMES
    assert sorted(path.name for path in (tmp_path / "show").iterdir()) == [
        "clip.flagged.png",
        "clip.overlay.mp4",
        "clip.timeline.png",
    ]


def test_a_video_without_labels_is_refused(labelled_folder: tuple[Path, Path]) -> None:
    _, labels = labelled_folder
    with pytest.raises(StorageError, match="got labels of 1 others; label it first"):
        read_labelled(str(labels), "0" * 64, StorageSettings())


def test_labels_of_another_size_are_refused_and_leave_no_film(tmp_path: Path) -> None:
    video, labels = _label(tmp_path, height=HEIGHT + 2)
    found = read_labelled(str(labels), video_sha256(video), StorageSettings())
    with pytest.raises(VideoError, match="show the file that was labelled"):
        show_video(video, found, tmp_path / "show", DecodeSettings())
    assert list((tmp_path / "show").iterdir()) == []


def test_a_film_that_cannot_be_finished_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    film = FilmWriter(tmp_path / "a.mp4", 25.0)
    real = film._container
    stand_in = type("FullDisk", (), {"mux": full, "close": lambda self: real.close(), "add_stream": real.add_stream})
    monkeypatch.setattr(film, "_container", stand_in())
    with pytest.raises(StorageError, match="No space left"), film:
        film.append(np.zeros((64, 64, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
