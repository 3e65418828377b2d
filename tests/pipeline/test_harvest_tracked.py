"""Tracked harvests: rows are what the pipeline propagates, rivals are runs of the same prompt, kills lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import HeadError
from pipeline.harvest_tracked import Protocol, harvest_tracked
from pipeline.models import LoadedModel, load_model
from pipeline.nano.clips import render_clip
from usam.datasets.synthetic import Rendered
from usam.features import FEATURES
from usam.prompts import centre_point
from usam.shard import Shard
from usam.targets import mask_iou

SEEDS = (100_000_300, 100_000_301, 100_000_302)
FRAMES = 5


def draw(video_id: str) -> tuple[Any, Any]:
    clip = render_clip(int(video_id), frames=FRAMES, size=96)
    return clip.frames_thw3, clip.ids_thw


def clips(count: int = 2) -> Rendered:
    return Rendered(draw, [str(seed) for seed in SEEDS[:count]])


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return load_model("sam2_nano")


@pytest.fixture(scope="module")
def whole(nano: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Shard:
    protocol = Protocol(entropies=("H_Std", "H_A", "H_XP", "H_T", "H_Theta"), min_area_px=30)
    models = {"tiny": nano, "large": nano}  # two sizes of one model: every rival of the same prompt must agree
    return harvest_tracked(clips(), models, tmp_path_factory.mktemp("h") / "s", deployed="tiny", protocol=protocol)


@pytest.mark.slow
def test_every_target_has_a_row_on_every_frame_from_its_first(whole: Shard) -> None:
    for seed in SEEDS[:2]:
        ids = draw(str(seed))[1]
        of_video = whole.column("video_id") == str(seed)
        for object_id in np.unique(whole.column("object_id")[of_video]):
            rows = of_video & (whole.column("object_id") == object_id)
            first = next(t for t in range(FRAMES) if (ids[t] == object_id).sum() >= 30)
            assert whole.column("frame_index")[rows].tolist() == list(range(first, FRAMES))
            assert whole.column("prompted")[rows].tolist() == [True] + [False] * (FRAMES - first - 1)
            assert whole.column("visible")[rows].tolist() == [(ids[t] == object_id).any() for t in range(first, FRAMES)]


@pytest.mark.slow
def test_the_same_model_under_another_size_gives_the_same_masks(whole: Shard) -> None:
    """Batches differ (prompts share one), so the last bit of a logit may; a mask does not."""
    assert np.abs(whole.column("iou_large") - whole.column("iou_tracked")).max() < 0.02
    assert np.allclose(whole.column("H_Theta"), whole.column("H_Std"), atol=0.02)
    assert np.array_equal(whole.column("iou_tiny"), whole.column("iou_chosen"))


@pytest.mark.slow
def test_columns_agree_with_one_another(whole: Shard) -> None:
    best = np.stack([whole.column(f"candidate_iou_{j}") for j in range(3)], 1)
    scores = np.stack([whole.column(f"candidate_score_{j}") for j in range(3)], 1)
    chosen, rows = whole.column("chosen").astype(int), np.arange(len(whole))
    assert np.array_equal(whole.column("best") - 1, best.argmax(1))
    assert np.allclose(scores[rows, chosen - 1], whole.column("sam_score"), atol=1e-6)
    predicted = whole.column("predicted")
    assert np.allclose(best[rows, chosen - 1][predicted], whole.column("iou_chosen")[predicted], atol=1e-6)
    assert (whole.column("iou") >= whole.column("iou_chosen")).all()
    for name in (*FEATURES, "iou_dense_prompt", "H_XP", "H_T", "H_A"):
        assert np.isfinite(whole.column(name)).all(), name
    tokens = whole.pairs()
    assert np.array_equal(tokens[:, whole.width // 2 :], whole.tokens_n5d[rows, chosen + 1])


@pytest.mark.slow
def test_rows_are_what_the_pipeline_propagates(nano: LoadedModel, whole: Shard) -> None:
    """The row's IoU from scratch: a session of the centre click alone, upsampled."""
    from pipeline.nano.batches import fit_frames
    from pipeline.prompts import FramePrompt, ObjectPrompts, PromptSet
    from pipeline.propagate import Session
    from usam.image import upsampled_mask

    frames, ids = draw(str(SEEDS[0]))
    small = fit_frames(frames, nano.image_size)
    rows = whole.column("video_id") == str(SEEDS[0])
    object_id = int(whole.column("object_id")[rows & (whole.column("frame_index") == 0)][0])
    prompt = FramePrompt(0, centre_point(ids[0] == object_id)[None], np.ones(1, np.int32))
    session = Session(
        nano.model, PromptSet((ObjectPrompts(1, None, (prompt,)),), "", ""), ids.shape[1:], FRAMES, reverse=False
    )
    session.prepare(lambda index: small[index])

    class Shown:
        def __init__(self, index: int) -> None:
            self.index, self.rgb_hw3 = index, small[index]

    mine = whole.column("iou_chosen")[rows & (whole.column("object_id") == object_id)]
    for (result,), expected in zip(session.forward(Shown(i) for i in range(FRAMES)), mine, strict=True):
        truth = ids[result.frame_index] == object_id
        assert result.logits_hw is not None
        assert float(mask_iou(upsampled_mask(result.logits_hw, truth), truth)) == pytest.approx(expected, abs=0.02)


def test_an_entropy_that_would_take_eighty_runs_is_refused() -> None:
    with pytest.raises(HeadError, match="H_Theta, got H_Y"):
        Protocol(entropies=("H_Y",))


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_harvest_tracked import clips
from pipeline.harvest_tracked import Protocol, harvest_tracked
from pipeline.models import load_model
harvest_tracked(clips(3), {"tiny": load_model("sam2_nano")}, Path(sys.argv[1]), deployed="tiny",
                protocol=Protocol(entropies=(), dense=False),
                progress=lambda name, done, total: print(done, name, flush=True))
"""


@pytest.mark.slow
def test_a_killed_harvest_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    here = str(Path(__file__).parent)
    subprocess.run([*command, str(tmp_path / "a"), here], check=True, env=environment, timeout=300)
    child = subprocess.Popen([*command, str(tmp_path / "b"), here], stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    assert child.stdout.readline().split() == ["0", str(SEEDS[0])]
    assert child.stdout.readline().split() == ["1", str(SEEDS[1])]  # the first one is on disk
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (tmp_path / "b" / "parts").is_dir()
    again = subprocess.run(
        [*command, str(tmp_path / "b"), here], check=True, env=environment, timeout=300, capture_output=True, text=True
    )
    assert str(SEEDS[0]) not in again.stdout.split()
    for name in ("rows.parquet", "tokens.npy", "shard.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
