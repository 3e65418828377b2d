"""Timeline, contact sheet and film: that they open, say what they must, and leave nothing half-written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.errors import StorageError
from pipeline.render.contact import crop_box, draw_contact_sheet, make_tile
from pipeline.render.film import FilmWriter, _rate
from pipeline.render.labelled import Labelled
from pipeline.render.masklet import masklets, runs
from pipeline.render.overlay import MaskView
from pipeline.render.timeline import draw_timeline


def _rows(num_frames: int = 6) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "frame_index": i,
                "pts_seconds": i / 30,
                "object_id": o,
                "label": "cup" if o == 1 else None,
                "visibility": "absent" if i == 5 else "visible",
                "prompted": "click" if i == 0 else None,
                "uncertainty": None if i == 5 else 0.1 * i,
                "decision": "accept" if i < 3 else "review",
            }
            for i in reversed(range(num_frames))
            for o in (2, 1)
        ]
    )


def test_masklets_are_in_time_order_whatever_the_rows_order() -> None:
    first, second = masklets(_rows())
    assert (first.object_id, first.label, second.object_id, second.label) == (1, "cup", 2, None)
    assert first.frame_index_n.tolist() == list(range(6))
    assert np.isnan(first.uncertainty_n[5])
    assert first.decision_code_n.tolist() == [1, 1, 1, 2, 2, 2]
    assert first.review_share == 0.5


def test_a_masklet_knows_where_its_shots_begin() -> None:
    rows = _rows(6)
    shots = pa.array([0 if frame < 2 else 1 if frame < 5 else 2 for frame in rows["frame_index"].to_pylist()])
    assert masklets(rows)[0].cut_frames_n.tolist() == []
    cut = masklets(rows.append_column("shot_index", shots))
    assert [one.cut_frames_n.tolist() for one in cut] == [[2, 5], [2, 5]]


def test_a_timeline_draws_its_cuts(tmp_path: Path) -> None:
    rows = _rows(20)
    shots = pa.array([frame // 10 for frame in rows["frame_index"].to_pylist()])
    paths = [
        draw_timeline(masklets(table), tmp_path / f"{number}.png", title="cu$p_{$", threshold=0.24)
        for number, table in enumerate((rows, rows.append_column("shot_index", shots)))
    ]
    plain, cut = (np.asarray(Image.open(path).convert("L")).astype(int) for path in paths)
    changed = np.flatnonzero((np.abs(plain - cut) > 40).sum(0) > 60)
    middle = 0.135 + (0.975 - 0.135) * 10 / 20  # of the axes, where frame 10 begins
    assert changed.size
    assert np.abs(changed / plain.shape[1] - middle).max() < 0.005


def test_runs_cover_every_position_once() -> None:
    assert runs(list("aabccc")) == [(0, 2), (2, 3), (3, 6)]
    assert runs([]) == []


@pytest.mark.parametrize("num_frames", [1, 6])
def test_a_timeline_opens(tmp_path: Path, num_frames: int) -> None:
    path = draw_timeline(masklets(_rows(num_frames)), tmp_path / "t.png", title="cup", threshold=0.24)
    with Image.open(path) as picture:
        assert picture.width > 1000


def test_a_contact_sheet_opens_with_and_without_tiles(tmp_path: Path) -> None:
    mask = np.zeros((120, 160), bool)
    view = MaskView(1, "cup", mask, "review", "absent", None, reasons=("object absent",))
    tile = make_tile(np.zeros((120, 160, 3), np.uint8), view, 3, around_xyxy=(10, 10, 40, 40))
    assert tile.lines == ("frame 3", "object absent")
    full = draw_contact_sheet([tile] * 5, tmp_path / "full.png", title="t", note="n")
    none = draw_contact_sheet([], tmp_path / "none.png", title="t", note="n")
    with Image.open(full) as big, Image.open(none) as small:
        assert big.height > small.height


def test_pictures_of_a_video_without_objects_say_so(tmp_path: Path) -> None:
    timeline = draw_timeline([], tmp_path / "t.png", title="grey", threshold=0.24)
    flagged = draw_contact_sheet([], tmp_path / "a.png", title="t", note="n")
    found = draw_contact_sheet([], tmp_path / "b.png", title="t", note="n", nothing="No object was found.")
    assert flagged.read_bytes() != found.read_bytes()
    with Image.open(timeline) as picture:
        middle = np.asarray(picture.convert("L"))[picture.height // 3 : 2 * picture.height // 3, 500:1000]
    assert (middle < 100).any()


def test_the_evidence_names_the_stricter_threshold_of_automatic_objects() -> None:
    plain = Labelled("id", pa.table({}), pa.table({}), threshold=0.25)
    assert plain.evidence == "threshold 0.25, uncertified"
    automatic = dataclasses.replace(plain, auto_margin=0.05)
    assert automatic.evidence == "threshold 0.25 (0.20 for automatic objects), uncertified"


@pytest.mark.parametrize("corner", [(0, 0, 20, 20), (140, 100, 160, 120), (60, 40, 90, 70)])
def test_a_crop_holds_its_mask_and_stays_in_the_frame(corner: tuple[int, int, int, int]) -> None:
    mask = np.zeros((120, 160), bool)
    mask[corner[1] : corner[3], corner[0] : corner[2]] = True
    x0, y0, x1, y1 = crop_box(mask)
    assert 0 <= x0 <= corner[0]
    assert 0 <= y0 <= corner[1]
    assert corner[2] <= x1 <= 160
    assert corner[3] <= y1 <= 120


def test_a_film_has_every_frame_at_the_source_rate(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with FilmWriter(path, 30000 / 1001) as film:
        for i in range(7):
            film.append(np.full((33, 47, 3), i * 30, np.uint8))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert (len(frames), stream.width, stream.height) == (7, 48, 34)
        assert abs(float(stream.average_rate) - 29.97) < 0.01


def test_a_film_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with FilmWriter(tmp_path / "film.mp4", 25) as film:
            film.append(np.zeros((32, 32, 3), np.uint8))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match="choose another --out"):
        draw_timeline(masklets(_rows()), blocked / "t.png", title="t", threshold=None)
    with pytest.raises(StorageError, match="choose another --out"):
        FilmWriter(blocked / "f.mp4", 25)


@pytest.mark.parametrize(("fps", "exact"), [(29.97002997, "30000/1001"), (30.0, "30"), (24.0, "24"), (0.0, "25")])
def test_rates_stay_exact(fps: float, exact: str) -> None:
    assert str(_rate(fps)) == exact
