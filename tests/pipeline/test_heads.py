"""Heads for a model: published-style folders imported, or fitted to truth of any kind; both found afterwards."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cli import main
from pipeline.demo import make_drop
from pipeline.errors import HeadError
from pipeline.heads import fit_heads, import_heads
from pipeline.models import LoadedModel, load_model
from pipeline.score import score_head
from pipeline.settings import Settings, load_settings
from usam.bank_files import install_path
from usam.errors import DatasetError
from usam.heads import HeadCard
from usam.shard import Shard
from usam.weights import import_published, save_bank


@pytest.fixture
def nano() -> LoadedModel:
    return load_model("sam2_nano")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(None, {"model.cache_dir": str(tmp_path / "cache")})


def _published(folder: Path, width: int, *names: str) -> Path:
    """Folders in the published layout."""
    for name in names:
        layers = [torch.nn.Linear(width, width), torch.nn.Linear(width, width), torch.nn.Linear(width, 1)]
        (folder / name).mkdir(parents=True)
        state = {
            f"layers.{i}.{kind}": getattr(layer, kind).data
            for i, layer in enumerate(layers)
            for kind in ("weight", "bias")
        }
        torch.save(state, folder / name / "model.pth")
    return folder


def test_imported_heads_are_found_with_the_model_and_fed_as_published(
    tmp_path: Path, nano: LoadedModel, settings: Settings
) -> None:
    width = 2 * nano.model.hidden_dim
    import_heads(_published(tmp_path / "heads", width, "iou_tiny", "model_gap"), nano, settings)
    again = load_model("sam2_nano", cache_dir=tmp_path / "cache")
    assert again.bank is not None
    assert again.bank.heads == ("iou_tiny", "model_gap")
    assert again.bank.mask_token_offset == 0
    assert score_head(again.bank) == "sam_score"  # sam2_nano is none of the published sizes


def test_heads_of_another_width_and_an_empty_folder_are_refused(
    tmp_path: Path, nano: LoadedModel, settings: Settings
) -> None:
    with pytest.raises(HeadError, match="width 256"):
        import_heads(_published(tmp_path / "wide", 512, "iou_tiny"), nano, settings)
    with pytest.raises(HeadError, match="name folders after heads"):
        import_heads(tmp_path, nano, settings)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_bank_of_another_width_is_refused_when_its_model_is_loaded(tmp_path: Path, nano: LoadedModel) -> None:
    heads = _published(tmp_path / "wide", 64, "iou_tiny")
    bank = import_published(heads, HeadCard(nano.name, nano.sha256, mask_token_offset=0))
    save_bank(bank, install_path(nano.name, nano.sha256, tmp_path / "cache" / "heads"))
    with pytest.raises(HeadError, match="width 256"):
        load_model("sam2_nano", cache_dir=tmp_path / "cache")


def _clips(folder: Path, names: tuple[str, ...], frames: int = 3) -> Path:
    """A split of rendered clips, frame by frame, with a square that moves."""
    for number, name in enumerate(names):
        for kind in ("", ".truth"):
            (folder / f"{name}{kind}").mkdir(parents=True)
        for index in range(frames):
            ids_hw = np.zeros((72, 96), np.uint8)
            ids_hw[20 + 3 * number : 44, 10 + 6 * index : 40 + 6 * index] = 3
            rgb_hw3 = np.where(ids_hw[..., None] > 0, (220, 60, 40), (30, 50, 90 + 20 * number)).astype(np.uint8)
            Image.fromarray(rgb_hw3).save(folder / name / f"{index:05d}.png")
            Image.fromarray(ids_hw).save(folder / f"{name}.truth" / f"{index:05d}.png")
    return folder


@pytest.mark.slow
def test_a_data_set_of_videos_gives_every_head_of_one_model(
    tmp_path: Path, nano: LoadedModel, settings: Settings
) -> None:
    _clips(tmp_path / "set" / "val", ("v",))
    _clips(tmp_path / "set" / "train", ("a", "b"))
    seen: list[tuple[str, str, int, int]] = []
    _, bank = fit_heads(tmp_path / "set", nano, settings, progress=lambda *step: seen.append(step))
    assert {"iou_tracked", "iou_dense_prompt", "prompt_gap", "task_gap"} <= set(bank.heads)
    assert bank.card.recipe["trained_on"] == [
        {"dataset": "synthetic", "split": "train", "kind": "tracked", "rows": 6, "videos": 2}
    ]
    assert seen[:3] == [("propagating", name, done, 2) for name, done in (("a", 0), ("b", 1), ("writing", 2))]
    assert {name for stage, name, *_ in seen if stage == "training"} == set(bank.heads)
    assert not list((tmp_path / "cache" / "fit").iterdir())  # nothing is kept once the bank is installed
    again = load_model("sam2_nano", cache_dir=tmp_path / "cache")
    assert again.bank is not None
    assert score_head(again.bank) == "iou_tracked"


@pytest.mark.slow
def test_single_images_give_the_heads_that_need_no_propagation(
    tmp_path: Path, nano: LoadedModel, settings: Settings
) -> None:
    folder = tmp_path / "ADEChallengeData2016"
    _clips(tmp_path / "made", ("a", "b", "c"), frames=1)
    for kind in ("images", "annotations"):
        (folder / kind / "training").mkdir(parents=True)
    for name in ("a", "b", "c"):
        with Image.open(tmp_path / "made" / name / "00000.png") as image:
            image.save(folder / "images" / "training" / f"{name}.jpg")
        (tmp_path / "made" / f"{name}.truth" / "00000.png").rename(folder / "annotations" / "training" / f"{name}.png")
    _, bank = fit_heads(tmp_path, nano, settings, dataset="ade20k", work=tmp_path / "rows")
    assert bank.heads == ("iou_tiny", "iou_dense_prompt", "iou_unsupervised", "prompt_gap", "task_gap")
    assert len(Shard.open(tmp_path / "rows")) == 3


def test_a_data_set_that_cannot_be_fitted_to_is_named(tmp_path: Path, nano: LoadedModel, settings: Settings) -> None:
    def refused(says: str, error: type[Exception] = DatasetError, **options: str) -> None:
        with pytest.raises(error, match=says):
            fit_heads(tmp_path / "set", nano, settings, **options)  # type: ignore[arg-type]

    (tmp_path / "set").mkdir()
    refused("none of them")
    _clips(tmp_path / "set" / "val", ("v",))
    refused("at least two videos in synthetic val")
    refused("out of train, val", split="exam")
    refused("did you mean davis2017", dataset="davis")
    _clips(tmp_path / "set" / "train", ("v",))
    refused("every video of synthetic in one split")
    _clips(tmp_path / "set" / "train", ("w", "x"))
    for kind in ("", ".truth"):
        shutil.rmtree(tmp_path / "set" / "train" / f"v{kind}")
    mask = tmp_path / "set" / "train" / "x.truth" / "00001.png"
    kept = mask.read_bytes()
    mask.unlink()
    refused("00001.png")
    mask.write_bytes(kept)
    for name in ("w", "x"):
        for index in range(3):
            Image.fromarray(np.zeros((72, 96), np.uint8)).save(
                tmp_path / "set" / "train" / f"{name}.truth" / f"{index:05d}.png"
            )
    refused("at least one row", HeadError)
    (tmp_path / "set" / "reviewed.parquet").write_bytes(b"")
    refused("name it by --labels", HeadError)


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.heads import fit_heads
from pipeline.models import load_model
from pipeline.settings import load_settings
truth, cache, stage, pattern = sys.argv[1:]
def progress(at, name, done, total):
    if at == stage and any(Path(cache).glob(f"fit/*/{pattern}")):
        os.kill(os.getpid(), signal.SIGKILL)
fit_heads(Path(truth), load_model("sam2_nano"), load_settings(None, {"model.cache_dir": cache}), progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "kept"), [("propagating", "parts/*.parquet"), ("training", "training/*.pt")])
def test_a_killed_fit_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, nano: LoadedModel, stage: str, kept: str
) -> None:
    truth = _clips(tmp_path / "set" / "train", ("a", "b", "c")).parent
    whole, _ = fit_heads(truth, nano, load_settings(None, {"model.cache_dir": str(tmp_path / "whole")}))
    cache = tmp_path / "cache"
    call = [sys.executable, "-c", KILLED, str(truth), str(cache), stage, kept]
    assert subprocess.run(call, check=False, timeout=600).returncode == -signal.SIGKILL
    assert list(cache.glob(f"fit/*/{kept}"))
    assert not (cache / "heads").exists()
    ran: list[tuple[str, str]] = []
    path, _ = fit_heads(
        truth, nano, load_settings(None, {"model.cache_dir": str(cache)}),
        progress=lambda at, name, *_: ran.append((at, name)),
    )  # fmt: skip
    assert ("propagating", "c") not in ran if stage == "training" else ("propagating", "c") in ran
    for one in (path, path.with_suffix(".json")):
        assert one.read_bytes() == (whole.parent / one.name).read_bytes()


@pytest.mark.slow
def test_a_bank_is_fitted_from_videos_with_truth_in_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drop = tmp_path / "drop"
    make_drop(drop, num_frames=8)
    cache = f"model.cache_dir={tmp_path / 'cache'}"
    with pytest.raises(SystemExit) as exited:
        main(["usam", "fit", str(drop), "--model", "sam2_nano", "--set", cache])
    assert exited.value.code == 0
    out, err = capsys.readouterr()
    assert "iou_tracked for sam2_nano" in out
    assert "behind SAM2's own there" in err  # three clips of eight frames
    assert "its own token" in out
    assert "SAM2's own" in out  # the held-out figures beside it
    loaded = load_model("sam2_nano", cache_dir=tmp_path / "cache")
    assert loaded.bank is not None
    assert loaded.bank.card.recipe["trained_on"][0]["videos"] == 3
    assert score_head(loaded.bank) == "iou_tracked"


def test_an_import_says_what_it_is_fed_and_what_the_score_is(
    tmp_path: Path, nano: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = _published(tmp_path / "heads", 2 * nano.model.hidden_dim, "model_gap", "iou_large")
    (heads / "iou_lage").mkdir()
    shutil.copy(heads / "iou_large" / "model.pth", heads / "iou_lage")
    with pytest.raises(SystemExit) as exited:
        main(["usam", "import", str(heads), "--model", "sam2_nano", "--set", f"model.cache_dir={tmp_path / 'cache'}"])
    assert exited.value.code == 0
    out, err = capsys.readouterr()
    assert "iou_lage" in err  # a slip of the pen is not passed over in silence
    assert "installed iou_large, model_gap for sam2_nano" in out
    assert "256 numbers" in out
    assert "the token before its own (as published)" in out
    assert "SAM2's own, for no head predicts" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "truth to fit heads to"),
        ((".", "--truth", "."), "truth to fit heads to"),
        (("--truth", "nowhere"), "truth at nowhere"),
        (("--truth", ".", "--labels", "nowhere"), "labels in nowhere"),
        (("--truth", ".", "--labels", ".", "--split", "train"), "--labels alone"),
        (("--truth", ".", "--max-videos", "0"), "max_videos of at least 1"),
    ],
)
def test_a_wrong_call_of_fit_is_told_in_one_line(
    words: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exited:
        main(["usam", "fit", *words, "--model", "sam2_nano"])
    assert exited.value.code == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
