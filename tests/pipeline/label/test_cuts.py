"""Scene cuts in the job: marked, stopped at or ignored, with prompts in either shot."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pipeline.label import label_video
from pipeline.models import LoadedModel
from pipeline.settings import load_settings

from .conftest import CUT, read_rows, run_label

FRAMES = 18
EARLY, LATE, BOTH = 1, 2, 3


def label(two_shots: Path, out: Path, nano: LoadedModel, **settings: object) -> pd.DataFrame:
    changes = {f"propagate.{name}" if "." not in name else name: value for name, value in settings.items()}
    run_label(two_shots, out, nano, load_settings(None, changes))
    return read_rows(out).set_index(["object_id", "frame_index"])


@pytest.fixture(scope="module")
def flagged(two_shots: Path, nano: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The rows with the settings as shipped."""
    return label(two_shots, tmp_path_factory.mktemp("flag"), nano)


def test_a_track_across_a_cut_is_flagged_in_both_directions(flagged: pd.DataFrame) -> None:
    rows = flagged
    for one, clean in {EARLY: range(CUT), LATE: range(CUT, FRAMES), BOTH: range(FRAMES)}.items():
        mine = rows.loc[one]
        assert mine.shot_index.tolist() == [0] * CUT + [1] * (FRAMES - CUT)
        assert mine.index[~mine.across_cut].tolist() == list(clean)
        assert (mine.visibility != "untracked").all()
        across = mine[mine.across_cut]
        assert (across.decision == "review").all()
        assert all("across a scene cut" in reasons for reasons in across.reasons)
    assert not rows.auto.any()


def test_an_accepting_policy_leaves_the_cut_to_the_reader(two_shots: Path, nano: LoadedModel, tmp_path: Path) -> None:
    rows = label(two_shots, tmp_path, nano, **{"policy.across_cut": "accept", "policy.max_uncertainty": 1.0})
    assert rows.across_cut.sum() == FRAMES
    assert not any("across a scene cut" in reasons for reasons in rows.reasons)


def test_nothing_is_followed_across_a_cut_where_the_settings_stop_there(
    two_shots: Path, flagged: pd.DataFrame, nano: LoadedModel, tmp_path: Path
) -> None:
    rows = label(two_shots, tmp_path, nano, on_cut="stop")
    tracked = rows[rows.visibility != "untracked"]
    assert tracked.loc[EARLY].index.tolist() == list(range(CUT))
    assert tracked.loc[LATE].index.tolist() == list(range(CUT, FRAMES))  # its reverse pass ends at the cut
    assert tracked.loc[BOTH].index.tolist() == [*range(CUT), *range(14, FRAMES)]
    assert (rows[rows.visibility == "untracked"].decision == "hold").all()
    assert rows.across_cut.equals(flagged.across_cut)


def test_who_ignores_cuts_has_one_shot(
    two_shots: Path, flagged: pd.DataFrame, nano: LoadedModel, tmp_path: Path
) -> None:
    rows = label(two_shots, tmp_path, nano, on_cut="ignore")
    assert (rows.shot_index == 0).all()
    assert not rows.across_cut.any()
    assert rows.rle.equals(flagged.rle)  # a flag changes no mask


def test_under_a_stride_a_cut_lies_on_a_labelled_frame(two_shots: Path, nano: LoadedModel, tmp_path: Path) -> None:
    rows = label(two_shots, tmp_path, nano, **{"decode.stride": 3})
    shots = rows.loc[EARLY].shot_index
    assert set(shots.index) == {*range(0, FRAMES, 3), 2, 14}  # prompted frames are always taken
    assert shots.index[shots == 0].max() < CUT <= shots.index[shots == 1].min()
    assert rows.loc[LATE].across_cut.equals(rows.loc[LATE].shot_index == 0)


def test_another_way_with_cuts_is_other_work(two_shots: Path, nano: LoadedModel, tmp_path: Path) -> None:
    def generation(**changes: object) -> int:
        settings = load_settings(None, {f"propagate.{name}": value for name, value in changes.items()})
        return run_label(two_shots, tmp_path, nano, settings).generation

    assert [generation(), generation(on_cut="ignore"), generation(on_cut="ignore", cut_threshold=0.9)] == [1, 2, 2]
    assert generation(cut_threshold=0.9) == 3


def test_a_video_without_prompts_is_looked_at_where_a_shot_begins(
    two_shots: Path, tmp_path: Path, nano: LoadedModel
) -> None:
    rules = {"every_frames": 50, "min_score": 0.3, "min_stability": 0.3}
    settings = load_settings(None, {"prompts.on_missing": "auto", "prompts.auto": rules})
    label_video(str(two_shots / "clip.mp4"), None, str(tmp_path), settings, model=nano)
    rows = read_rows(tmp_path)
    assert settings.propagate.on_cut == "flag"
    assert {0, CUT} <= set(rows.frame_index[rows.prompted.notna()]) <= {0, CUT, FRAMES - 1}
    fresh = rows[rows.object_id.isin(rows.object_id[(rows.prompted == "auto") & (rows.frame_index == CUT)])]
    assert fresh.frame_index.min() == CUT
    assert not fresh.across_cut.any()
