"""Labels of every n-th frame, of so many frames a second, and of a range: right rows under the source's numbers."""

from __future__ import annotations

import dataclasses
import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline import rle, temporal
from pipeline.errors import PromptError
from pipeline.label import label_video, torch_threads
from pipeline.models import LoadedModel
from pipeline.nano.clips import Clip
from pipeline.prompts import load_prompts
from pipeline.propagate import Session
from pipeline.records import read_metadata
from pipeline.render.labelled import read_labelled
from pipeline.render.show import show_video
from pipeline.report import VideoReport
from pipeline.settings import DecodeSettings, StorageSettings, load_settings
from pipeline.source import video_sha256
from pipeline.video.probe import probe_video
from pipeline.video.sample import Sample
from pipeline.video.stream import FrameStream

from .conftest import FRAMES, read_rows, run_label

MILLISECOND = Fraction(1, 1000)
STRIDE = 3
CHOSEN = [0, 3, 5, 6, 9]  # every third frame of twelve, and frame 5, which carries a prompt


@pytest.fixture(scope="module")
def strided(drop: Path, nano: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoReport]:
    out = tmp_path_factory.mktemp("strided")
    changes = {"decode.stride": STRIDE, "policy.max_uncertainty": 0.0, "output.candidates": True, "output.tokens": True}
    return out, run_label(drop, out, nano, load_settings(None, changes), progress=None)


def test_rows_are_those_of_a_session_that_saw_only_these_frames(
    strided: tuple[Path, VideoReport], drop: Path, nano: LoadedModel
) -> None:
    rows = read_rows(strided[0])
    info = probe_video(drop / "clip.mp4", DecodeSettings())
    with FrameStream(info, DecodeSettings(), resize=nano.image_size) as stream:
        shown = [frame for frame in stream if frame.index in CHOSEN]
    prompts = Sample(FRAMES, np.array(CHOSEN)).prompts(load_prompts(drop / "clip.prompts.json"))
    session = Session(nano.model, prompts, (info.height, info.width), len(CHOSEN))
    found: dict[tuple[int, int], Any] = {}
    with torch_threads(load_settings(), nano):
        session.prepare(lambda position: shown[position].rgb_hw3)
        passes = [*session.forward(_numbered(shown)), *session.backward(lambda position: shown[position].rgb_hw3)]
    for results in passes:
        for one in results:
            if one.visibility != "untracked":
                found[CHOSEN[one.frame_index], one.object_id] = one
    assert list(zip(rows.frame_index, rows.object_id, strict=True)) == sorted(found)
    for row in rows.itertuples():
        one = found[row.frame_index, row.object_id]
        assert row.pts_seconds == pytest.approx(shown[CHOSEN.index(row.frame_index)].pts_seconds, abs=1e-9)
        assert row.direction == one.direction
        if one.prompted != "mask":
            assert row.sam_score == pytest.approx(one.sam_score, abs=1e-6)
            assert row.object_score == pytest.approx(one.object_score, abs=1e-5)
            expected = rle.encode_logits(one.logits_hw.numpy(), info.height, info.width)
            assert row.rle == (expected.counts if one.visibility == "visible" else rle.empty_mask(160, 160).counts)


def _numbered(shown: list[Any]) -> list[Any]:
    return [dataclasses.replace(frame, index=position) for position, frame in enumerate(shown)]


def test_a_late_prompt_is_on_its_frame_and_the_reverse_pass_reaches_the_first_one(
    strided: tuple[Path, VideoReport], clip: Clip
) -> None:
    rows = read_rows(strided[0])
    late = rows[rows.object_id == 2].set_index("frame_index")
    assert late.loc[5].prompted == "box"
    assert list(late.loc[:3].direction) == ["reverse"] * 2
    assert list(late.loc[6:].direction) == ["forward"] * 2
    given = rows[(rows.object_id == 3) & (rows.frame_index == 3)].iloc[0]
    assert given.prompted == "mask"
    assert np.array_equal(rle.decode(given.rle, 160, 160), clip.mask(clip.object_ids[0])[3])


def test_change_over_time_is_against_the_labelled_frame_before(strided: tuple[Path, VideoReport]) -> None:
    for _, track in read_rows(strided[0]).groupby("object_id"):
        masks = list(track.rle)
        expected = [temporal.temporal_iou(a, b, 160, 160) for a, b in itertools.pairwise(masks)]
        assert pd.isna(track.temporal_iou.iloc[0])
        assert track.temporal_iou.iloc[1:].tolist() == pytest.approx(expected, abs=1e-6)


def test_stretches_and_pictures_bear_the_sources_numbers(strided: tuple[Path, VideoReport]) -> None:
    labels, review = read_rows(strided[0]), read_rows(strided[0], "review")
    found = {tuple(stretch.frame_index) for _, stretch in review[review.object_id == 3].groupby("review_id")}
    assert found == {(0,), (5, 6, 9)}  # frame 3 is given; the others are neighbours among the labelled frames
    assert (labels.decision == "review").sum() == len(review)
    for row in review[review.representative].itertuples():
        assert Path(row.frame_uri).name == f"{row.frame_index:08d}.jpg"
        assert Path(row.frame_uri).is_file()
    assert set(review.frame_index) <= set(CHOSEN)


def test_the_report_counts_labelled_frames_and_sidecars_agree(strided: tuple[Path, VideoReport]) -> None:
    out, report = strided
    assert (report.frames, report.rows) == (len(CHOSEN), len(CHOSEN) * 3)
    for layer in ("candidates", "tokens"):
        assert set(read_rows(out, layer).frame_index) == set(CHOSEN)
    metadata = read_metadata(pq.read_schema(next((out / "masks").rglob("*.parquet"))))
    assert metadata["config"]["sampling"]["stride"] == STRIDE


def test_progress_counts_labelled_frames(drop: Path, nano: LoadedModel, tmp_path: Path) -> None:
    seen: list[Any] = []
    run_label(drop, tmp_path, nano, load_settings(None, {"decode.stride": STRIDE}), progress=seen.append)
    forward = [step for step in seen if step.stage == "propagate"]
    assert [step.done for step in forward] == [1, 2, 3, 4, 5]
    assert {step.total for step in seen if step.done and step.stage != "backward"} == {len(CHOSEN)}


@pytest.mark.slow
def test_another_sampling_is_other_work_and_the_same_is_a_no_op(drop: Path, nano: LoadedModel, tmp_path: Path) -> None:
    def run(**changes: Any) -> VideoReport:
        return run_label(
            drop, tmp_path, nano, load_settings(None, {f"decode.{name}": v for name, v in changes.items()})
        )

    assert run(stride=4).status == "labelled"
    again = run(stride=4)
    assert (again.status, again.frames) == ("unchanged", len({0, 4, 8, 3, 5}))
    assert run(stride=3).generation == 2
    assert run().generation == 3
    assert sorted(read_rows(tmp_path).frame_index.unique()) == list(range(FRAMES))


def test_a_range_labels_its_frames_and_names_a_prompt_outside(drop: Path, nano: LoadedModel, tmp_path: Path) -> None:
    run_label(drop, tmp_path, nano, load_settings(None, {"decode.end_seconds": 0.32}))
    assert sorted(read_rows(tmp_path).frame_index.unique()) == list(range(8))
    with pytest.raises(PromptError, match=r"frames 1\.\.11, which lie at or after 0.04 s, got one on frame 0 "):
        run_label(drop, tmp_path, nano, load_settings(None, {"decode.start_seconds": 0.04}))


def test_a_range_that_starts_late_shows_the_model_only_its_frames(
    drop: Path, nano: LoadedModel, tmp_path: Path
) -> None:
    prompts = {"version": 1, "objects": [{"object_id": 7, "prompts": [{"frame_index": 6, "points": [[80, 80, 1]]}]}]}
    (tmp_path / "late.json").write_text(json.dumps(prompts))
    changed = load_settings(None, {"decode.start_seconds": 0.16, "decode.end_seconds": 0.4})
    report = label_video(str(drop / "clip.mp4"), tmp_path / "late.json", str(tmp_path / "out"), changed, model=nano)
    rows = read_rows(tmp_path / "out")
    assert list(rows.frame_index) == [4, 5, 6, 7, 8, 9]
    assert list(rows.direction) == ["reverse", "reverse", "none", "forward", "forward", "forward"]
    assert rows.pts_seconds.to_numpy() == pytest.approx(np.arange(4, 10) / 25, abs=1e-3)
    assert report.frames == 6


def test_a_target_rate_follows_true_times_of_a_variable_frame_rate(
    clip: Clip, nano: LoadedModel, tmp_path: Path
) -> None:
    times_ms = [0, 10, 20, 130, 140, 150, 400, 410, 500, 510, 520, 1000]
    video = tmp_path / "vfr.mkv"
    with av.open(str(video), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width = stream.height = 160
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = MILLISECOND
        for picture, time_ms in zip(clip.frames_thw3, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = time_ms, MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    prompts = {"version": 1, "objects": [{"object_id": 1, "prompts": [{"frame_index": 4, "points": [[80, 80, 1]]}]}]}
    (tmp_path / "vfr.prompts.json").write_text(json.dumps(prompts))
    changed = load_settings(None, {"decode.fps": 10.0})
    label_video(str(video), tmp_path / "vfr.prompts.json", str(tmp_path / "out"), changed, model=nano)
    rows = read_rows(tmp_path / "out")
    # ticks 0, 100, 200..400, 500, 600..1000 ms; frame 4 carries the prompt
    assert list(rows.frame_index) == [0, 3, 4, 6, 8, 11]
    assert rows.pts_seconds.to_numpy() == pytest.approx([0, 0.13, 0.14, 0.4, 0.5, 1.0], abs=1e-6)


def test_the_film_shows_the_labelled_frames_at_their_own_pace(
    strided: tuple[Path, VideoReport], drop: Path, tmp_path: Path
) -> None:
    video = drop / "clip.mp4"
    labelled = read_labelled(str(strided[0]), video_sha256(video), StorageSettings())
    seen: list[tuple[int, int]] = []
    pictures = show_video(video, labelled, tmp_path, DecodeSettings(), progress=lambda *step: seen.append(step))
    assert pictures.frames == len(CHOSEN)
    assert seen[-1] == (len(CHOSEN), len(CHOSEN))
    with av.open(str(pictures.overlay)) as film:
        rate = film.streams.video[0].average_rate
        assert rate is not None
        assert float(rate) == pytest.approx((len(CHOSEN) - 1) / (9 / 25), rel=0.01)


def test_facts_name_the_decoder_that_read_the_sample(clip: Clip, nano: LoadedModel, tmp_path: Path) -> None:
    """decord reads a whole video; frames that are 40 apart are sought, which PyAV does."""
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"g": "20"})
        stream.width, stream.height, stream.pix_fmt = 160, 160, "yuv420p"
        for index in range(45):
            picture = av.VideoFrame.from_ndarray(clip.frames_thw3[index % FRAMES], format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    prompts = {"version": 1, "objects": [{"object_id": 1, "prompts": [{"frame_index": 0, "box": [20, 20, 90, 90]}]}]}
    (tmp_path / "clip.prompts.json").write_text(json.dumps(prompts))
    for stride, decoder in ((15, "decord"), (40, "pyav")):
        changes = {"decode.stride": stride, "policy.max_uncertainty": 0.0}
        run_label(tmp_path, tmp_path / decoder, nano, load_settings(None, changes), progress=None)
        metadata = read_metadata(pq.read_schema(next((tmp_path / decoder / "masks").rglob("*.parquet"))))
        assert (metadata["config"]["decoder"], metadata["decoder"]["name"]) == (decoder, decoder)
