"""The same bytes under two names, and videos that may not come back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import ForgottenError
from pipeline.label import Progress, label_video
from pipeline.ledger import Ledger, forgotten_key
from pipeline.models import LoadedModel
from pipeline.settings import Settings
from pipeline.source import video_sha256
from pipeline.storage.objects import ObjectStore

from .conftest import run_label


@pytest.fixture
def twin(drop: Path, tmp_path: Path) -> Path:
    """The drop's video under another name, with the first object's prompt alone."""
    copy = tmp_path / "twin" / "copy.mp4"
    copy.parent.mkdir()
    shutil.copy(drop / "clip.mp4", copy)
    prompts = json.loads((drop / "clip.prompts.json").read_text())
    prompts["objects"] = prompts["objects"][:1]
    copy.with_name("copy.prompts.json").write_text(json.dumps(prompts))
    return copy


def label_twin(twin: Path, out: Path, nano: LoadedModel, *, keep_first: bool) -> str:
    prompts = twin.with_name("copy.prompts.json")
    report = label_video(str(twin), prompts, str(out), Settings(), drop="night", model=nano, keep_first=keep_first)
    return report.status


def test_the_first_name_keeps_its_labels_while_it_exists(
    drop: Path, twin: Path, nano: LoadedModel, tmp_path: Path
) -> None:
    mine = tmp_path / "night"
    shutil.copytree(drop, mine)
    out = tmp_path / "out"
    run_label(mine, out, nano)
    before = pd.read_parquet(out / "labels")
    assert label_twin(twin, out, nano, keep_first=True) == "duplicate"
    pd.testing.assert_frame_equal(pd.read_parquet(out / "labels"), before)
    (mine / "clip.mp4").unlink()  # it was renamed, and prompted anew
    assert label_twin(twin, out, nano, keep_first=True) == "labelled"
    assert set(pd.read_parquet(out / "labels").object_id) == {1}


def test_without_that_rule_the_last_name_counts(drop: Path, twin: Path, nano: LoadedModel, tmp_path: Path) -> None:
    run_label(drop, tmp_path / "out", nano)
    assert label_twin(twin, tmp_path / "out", nano, keep_first=False) == "labelled"


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_forgotten_video_is_refused_and_leaves_nothing(
    drop: Path, nano: LoadedModel, tmp_path: Path, when: str
) -> None:
    store = ObjectStore(tmp_path / "out")
    key = forgotten_key(video_sha256(drop / "clip.mp4"))
    if when == "before":
        store.put_atomic(key, b"{}")

    def forget(progress: Progress) -> None:
        if progress.stage == "commit":
            store.put_atomic(key, b"{}")

    with pytest.raises(ForgottenError, match="forgotten on request"):
        run_label(drop, tmp_path / "out", nano, progress=forget)
    assert store.list() == [key]
    assert Ledger(store).newest(video_sha256(drop / "clip.mp4")) is None


def test_the_device_is_held_while_frames_are_propagated_and_no_longer(
    drop: Path, nano: LoadedModel, tmp_path: Path
) -> None:
    held: list[tuple[str, bool]] = []
    holding = False

    @contextmanager
    def slot() -> Iterator[None]:
        nonlocal holding
        holding = True
        yield
        holding = False

    run_label(drop, tmp_path / "out", nano, progress=lambda one: held.append((one.stage, holding)), slot=slot)
    stages = dict(held)
    assert {name for name, inside in stages.items() if inside} >= {"propagate"}
    assert not any(stages[name] for name in ("download", "probe", "device", "write", "commit", "route"))
