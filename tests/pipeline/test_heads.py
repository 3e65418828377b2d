"""Heads for a model: published-style folders imported, `iou_tracked` fitted from truth; both found afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cli import main
from pipeline.demo import make_drop
from pipeline.errors import HeadError
from pipeline.heads import fit_heads, import_heads
from pipeline.models import LoadedModel, load_model
from pipeline.score import score_head
from pipeline.settings import Settings, load_settings


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
    assert "installed iou_tracked for sam2_nano" in capsys.readouterr().out
    loaded = load_model("sam2_nano", cache_dir=tmp_path / "cache")
    assert loaded.bank is not None
    assert loaded.bank.card.recipe["videos_given"] == 3
    assert score_head(loaded.bank) == "iou_tracked"


def test_truth_that_does_not_fit_is_named(tmp_path: Path, nano: LoadedModel, settings: Settings) -> None:
    with pytest.raises(HeadError, match="at least two videos"):
        fit_heads(tmp_path, nano, settings)
    drop = tmp_path / "drop"
    made = make_drop(drop, num_frames=4)
    np.savez_compressed(drop / f"{made[0].name}.truth.npz", ids_thw=np.zeros((4, 9, 9), np.uint8))
    with pytest.raises(HeadError, match=r"\(4, 9, 9\)"):
        fit_heads(drop, nano, settings)
