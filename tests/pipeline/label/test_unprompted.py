"""Videos that nobody prompted: objects found on the first frame and later, tracks that end, and nothing at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFilter

from pipeline import rle
from pipeline.discover import automatic_prompts
from pipeline.errors import PromptError
from pipeline.label import label_video
from pipeline.ledger import Ledger
from pipeline.models import LoadedModel
from pipeline.prompts import FramePrompt, ObjectPrompts, prompt_set
from pipeline.render.film import FilmWriter
from pipeline.report import VideoReport
from pipeline.resume import corrected, frames_remembered, resume_session
from pipeline.settings import Settings, StorageSettings, load_settings
from pipeline.storage.objects import ObjectStore
from pipeline.stored_masks import StoredMasks, found_objects
from pipeline.video.probe import probe_video
from pipeline.video.stream import FrameStream

from .conftest import read_rows

FRAMES, SIZE, LOOK = 26, 128, 6
ENTERS, LEAVES, GONE_AFTER = 8, 10, 4


def auto(**more: object) -> Settings:
    rules = {"every_frames": LOOK, "end_after_absent": GONE_AFTER, **more}
    return load_settings(None, {"prompts.on_missing": "auto", "prompts.auto": rules})


def truth(index: int) -> dict[str, tuple[int, int, int]]:
    """Centre and radius of what is in the picture: one stays, one leaves, one enters."""
    seen = {"stays": (32 + index // 4, 90, 17)}
    if index < LEAVES:
        seen["leaves"] = (92, 34, 16)
    if index >= ENTERS:
        seen["enters"] = (100 - index // 3, 92, 18)
    return seen


COLOURS = {"stays": (220, 60, 50), "leaves": (240, 220, 60), "enters": (50, 80, 220)}


def picture(index: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    coarse = Image.fromarray(rng.integers(90, 150, (6, 6, 3), dtype=np.uint8))
    canvas = coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    for name, (x, y, r) in truth(index).items():
        ImageDraw.Draw(canvas).ellipse((x - r, y - r, x + r, y + r), fill=COLOURS[name])
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(0.6)))


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unprompted")
    with FilmWriter(folder / "discs.mp4", 25.0, quality=8) as film:
        for index in range(FRAMES):
            film.append(picture(index))
    with FilmWriter(folder / "grey.mp4", 25.0, quality=8) as film:
        for _ in range(8):
            film.append(np.full((SIZE, SIZE, 3), 90, np.uint8))
    return folder


@pytest.fixture(scope="module")
def labelled(night: Path, nano: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoReport]:
    out = tmp_path_factory.mktemp("out")
    return out, label_video(str(night / "discs.mp4"), None, str(out), auto(), model=nano)


def iou(row: pd.Series, name: str) -> float:
    found = rle.decode(row.rle, row.height, row.width)
    ys, xs = np.mgrid[:SIZE, :SIZE]
    x, y, r = truth(row.frame_index)[name]
    disc = (xs - x) ** 2 + (ys - y) ** 2 <= r * r
    return float((found & disc).sum() / (found | disc).sum())


def track_of(rows: pd.DataFrame, name: str, frame: int) -> pd.DataFrame:
    """The rows of the object that shows this disc on this frame."""
    here = rows[(rows.frame_index == frame) & (rows.visibility == "visible")]
    best = max((iou(row, name), row.object_id) for row in here.itertuples())
    assert best[0] > 0.6
    return rows[rows.object_id == best[1]].sort_values("frame_index")


def test_every_row_says_that_nobody_asked_for_it(labelled: tuple[Path, VideoReport]) -> None:
    out, report = labelled
    rows = read_rows(out)
    assert rows.auto.all()
    assert rows.label.isna().all()
    assert report.objects == rows.object_id.nunique()
    assert report.rows == len(rows)
    prompted = rows[rows.prompted.notna()]
    assert (prompted.prompted == "auto").all()
    assert (prompted.groupby("object_id").size() == 1).all()
    assert (prompted.sam_score.notna()).all()
    assert set(prompted.frame_index) <= {*range(0, FRAMES, LOOK), FRAMES - 1}


def test_what_is_there_at_first_is_followed_throughout(labelled: tuple[Path, VideoReport]) -> None:
    rows = track_of(read_rows(labelled[0]), "stays", 0)
    assert rows.frame_index.tolist() == list(range(FRAMES))
    assert min(iou(row, "stays") for row in rows.itertuples()) > 0.6


def test_what_enters_later_is_found_by_the_next_look_and_followed_back(labelled: tuple[Path, VideoReport]) -> None:
    rows = track_of(read_rows(labelled[0]), "enters", FRAMES - 2)
    look = 2 * LOOK  # the first after it entered
    assert rows.set_index("frame_index").prompted.dropna().index.tolist() == [look]
    assert rows.frame_index.tolist() == list(range(LOOK, FRAMES))
    assert (rows[rows.frame_index < look].direction == "reverse").all()
    since = rows[rows.frame_index >= ENTERS]
    assert min(iou(row, "enters") for row in since.itertuples()) > 0.6


def test_a_track_ends_when_its_object_has_left(labelled: tuple[Path, VideoReport]) -> None:
    rows = track_of(read_rows(labelled[0]), "leaves", 0)
    last = rows.frame_index.max()
    assert LEAVES <= last < FRAMES - 1
    assert (rows[rows.frame_index > last - GONE_AFTER].visibility == "absent").all()


@pytest.mark.slow
def test_a_second_run_changes_nothing_and_another_setting_is_new_work(
    night: Path, nano: LoadedModel, labelled: tuple[Path, VideoReport], tmp_path: Path
) -> None:
    out, report = labelled
    again = label_video(str(night / "discs.mp4"), None, str(out), auto(), model=nano)
    assert (again.status, again.generation, again.objects) == ("unchanged", 1, report.objects)
    other = label_video(str(night / "discs.mp4"), None, str(tmp_path), auto(), model=nano)
    assert other.objects == report.objects
    here, there = (next((folder / "masks").rglob("*.parquet")).read_bytes() for folder in (out, tmp_path))
    assert here == there
    first_look = label_video(str(night / "discs.mp4"), None, str(tmp_path), auto(every_frames=None), model=nano)
    assert first_look.generation == 2
    assert set(read_rows(tmp_path).prompted.dropna().index.map(read_rows(tmp_path).frame_index)) == {0}


def test_a_video_where_nothing_is_found_is_labelled_with_no_rows(
    night: Path, nano: LoadedModel, tmp_path: Path
) -> None:
    report = label_video(str(night / "grey.mp4"), None, str(tmp_path), auto(), model=nano)
    assert (report.status, report.objects, report.rows, report.frames) == ("labelled", 0, 0, 8)
    rows = read_rows(tmp_path)
    assert len(rows) == 0
    assert {"rle", "decision", "auto"} <= set(rows.columns)
    assert label_video(str(night / "grey.mp4"), None, str(tmp_path), auto(), model=nano).status == "unchanged"


@pytest.mark.slow
def test_without_a_reverse_pass_nothing_is_kept_and_nothing_goes_back(
    night: Path, nano: LoadedModel, tmp_path: Path
) -> None:
    settings = load_settings(
        None, {"prompts.on_missing": "auto", "prompts.auto.every_frames": LOOK, "propagate.reverse": False}
    )
    label_video(str(night / "discs.mp4"), None, str(tmp_path), settings, model=nano)
    rows = read_rows(tmp_path)
    assert set(rows.direction) == {"forward", "none"}
    starts = rows.groupby("object_id").frame_index.min()
    assert (starts > 0).any()


def test_a_video_without_prompts_is_refused_unless_asked(night: Path, nano: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="--auto-prompts"):
        label_video(str(night / "discs.mp4"), None, str(tmp_path), load_settings(), model=nano)


@pytest.mark.slow
def test_sampled_frames_are_looked_at_by_their_number_in_the_sample(
    night: Path, nano: LoadedModel, tmp_path: Path
) -> None:
    settings = load_settings(
        None, {"prompts.on_missing": "auto", "prompts.auto.every_frames": LOOK, "decode.stride": 2}
    )
    label_video(str(night / "discs.mp4"), None, str(tmp_path), settings, model=nano)
    rows = read_rows(tmp_path)
    assert set(rows.frame_index) <= set(range(0, FRAMES, 2))
    late = track_of(rows, "enters", FRAMES - 2)
    assert late.set_index("frame_index").prompted.dropna().index.tolist() == [2 * LOOK]


def test_a_set_without_objects_does_not_ask_for_automatic_ones(night: Path, nano: LoadedModel, tmp_path: Path) -> None:
    for empty in (prompt_set((), "nothing"), automatic_prompts(load_settings().prompts.auto)):
        for settings in (load_settings(), auto()):
            with pytest.raises(PromptError, match="on_missing"):
                label_video(str(night / "discs.mp4"), empty, str(tmp_path), settings, model=nano)


def test_a_finished_video_is_gone_on_with_and_corrected(
    night: Path, nano: LoadedModel, labelled: tuple[Path, VideoReport]
) -> None:
    out, report = labelled
    rows = read_rows(out).set_index(["object_id", "frame_index"])
    store, settings = ObjectStore(str(out), StorageSettings()), load_settings()
    commit = Ledger(store).newest(report.video_id)
    assert commit is not None
    with FrameStream(
        probe_video(night / "discs.mp4", settings.decode), settings.decode, resize=nano.image_size
    ) as seen:
        frames = list(seen)
    found = found_objects(store, commit)
    assert [one.object_id for one in found.objects] == sorted(set(rows.index.get_level_values(0)))

    def likeness(result: object) -> float:
        row = rows.loc[(result.object_id, result.frame_index)]  # type: ignore[attr-defined]
        counts = rle.encode_logits(result.logits_hw.numpy(), SIZE, SIZE).counts  # type: ignore[attr-defined]
        return rle.iou(counts, row.rle, SIZE, SIZE) if row.visibility == "visible" else 1.0

    t, where = FRAMES - 5, ((SIZE, SIZE), FRAMES)
    stored = StoredMasks.from_facts(store, commit, frames_remembered(nano.model, FRAMES, t))
    session = resume_session(nano.model, found, stored, t, lambda index: frames[index].rgb_hw3, *where)
    again = [result for results in session.forward(frames[t:]) for result in results]
    assert {(one.object_id, one.frame_index) for one in again} == {key for key in rows.index if key[1] >= t}
    assert min(map(likeness, again)) > 0.9

    late = track_of(rows.reset_index(), "enters", FRAMES - 2)
    one, first = int(late.object_id.iloc[0]), int(late.frame_index.min())
    x, y, r = truth(FRAMES - 3)["enters"]
    box = FramePrompt(FRAMES - 3, box_xyxy=np.array([x - r, y - r, x + r, y + r], np.float32))
    correction = prompt_set([ObjectPrompts(one, None, (box,))], "review")
    passes = corrected(nano.model, found, correction, lambda index: frames[index].rgb_hw3, *where)
    changed = [result for results in passes for result in results if result.logits_hw is not None]
    assert {result.object_id for result in changed} == {one}
    assert sorted(result.frame_index for result in changed) == list(range(first, FRAMES))
