"""Models by name: built as upstream builds them, loaded whole or refused with the keys, Hydra left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import save_file

from pipeline import models
from pipeline.errors import ModelError
from pipeline.models import build_model, load_model, resolve_device
from usam.bank_files import install_path
from usam.heads import HeadBank, HeadCard
from usam.weights import save_bank

SMALL = "sam2_nano"


@pytest.fixture(scope="module")
def nano_state() -> dict[str, torch.Tensor]:
    """Random weights that fit sam2_nano."""
    torch.manual_seed(3)
    return build_model(SMALL).state_dict()


def saved(state: dict[str, Any], path: Path) -> Path:
    torch.save({"model": state}, path)
    return path


def test_building_leaves_hydra_as_it_was_and_needs_no_torchvision() -> None:
    code = (
        "import sys\n"
        "from hydra.core.global_hydra import GlobalHydra as G\n"
        "from pipeline.models import build_model\n"
        "build_model('sam2_nano'); print(G.instance().is_initialized())\n"
        "from hydra import initialize\n"
        "with initialize(version_base=None, config_path=None):\n"
        "    mine = G.instance().hydra; build_model('sam2_nano'); print(G.instance().hydra is mine)\n"
        "print('torchvision' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


def plain_attributes(model: torch.nn.Module) -> dict[str, Any]:
    """Every number, flag and string of every module: what a configuration decides besides the weights."""
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float | str | tuple) and not key.startswith("_")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "upstream"),
    [
        ("sam2.1_hiera_tiny", "configs/sam2.1/sam2.1_hiera_t.yaml"),
        ("sam2_hiera_tiny", "configs/sam2/sam2_hiera_t.yaml"),
        ("sam2.1_hiera_base_plus", "configs/sam2.1/sam2.1_hiera_b+.yaml"),
    ],
)
def test_a_model_is_what_upstreams_builder_makes(name: str, upstream: str) -> None:
    ours = build_model(name)
    from sam2.build_sam import build_sam2_video_predictor

    GlobalHydra.instance().clear()
    with initialize_config_module("sam2", version_base="1.2"):
        theirs = build_sam2_video_predictor(upstream, device="cpu", hydra_overrides_extra=[])
    assert type(ours) is type(theirs)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    expected = plain_attributes(theirs) | {".fill_hole_area": 0}
    assert plain_attributes(ours) == expected


def test_a_checkpoint_loads_whole(nano_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = saved(nano_state, tmp_path / "mine.pt")
    loaded = load_model(SMALL, weights=path)
    state = loaded.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in nano_state.items())
    assert (loaded.image_size, loaded.device, loaded.weights) == (128, "cpu", path)
    assert loaded.sha256 == models.file_sha256(path)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_half_precision_safetensors_load_as_float32(nano_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({key: value.half().contiguous() for key, value in nano_state.items()}, path)
    state = load_model(SMALL, weights=path).model.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32}
    key = "image_encoder.trunk.patch_embed.proj.weight"
    assert torch.equal(state[key], nano_state[key].half().float())


def test_a_model_without_heads_has_no_bank(nano_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    assert load_model(SMALL, weights=saved(nano_state, tmp_path / "mine.pt")).bank is None


def test_heads_are_found_by_the_checksum_of_the_weights(nano_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    mine = saved(nano_state, tmp_path / "mine.pt")
    other = saved({key: value + 1 for key, value in nano_state.items()}, tmp_path / "other.pt")
    sha256 = models.file_sha256(mine)
    cache = tmp_path / "cache"
    card = HeadCard(model_name=SMALL, model_sha256=sha256, mask_token_offset=1, recipe={}, heldout={})
    torch.manual_seed(0)
    layers = {"layers.0": (256, 256), "layers.1": (256, 256), "layers.2": (1, 256)}
    state = {f"{name}.weight": torch.randn(shape) for name, shape in layers.items()}
    state |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in layers.items()}
    bank = HeadBank(["iou_tracked"], [state], card)
    save_bank(bank, install_path(SMALL, sha256, models.bank_folders(cache)[0]))
    found = load_model(SMALL, weights=mine, cache_dir=cache).bank
    assert found is not None
    tokens = torch.randn(3, found.width)
    assert torch.equal(found(tokens)["iou_tracked"], bank(tokens)["iou_tracked"])
    assert load_model(SMALL, weights=other, cache_dir=cache).bank is None


@pytest.mark.slow
def test_a_random_hiera_tiny_loads_by_its_file(tmp_path: Path) -> None:
    path = saved(build_model("sam2.1_hiera_tiny").state_dict(), tmp_path / "tiny.pt")
    loaded = load_model("sam2.1_hiera_tiny", weights=path)
    assert (loaded.image_size, loaded.bank, loaded.model.fill_hole_area) == (1024, None, 0)


@pytest.mark.slow
def test_a_sam2_checkpoint_under_a_sam21_name_says_which_name_to_use(tmp_path: Path) -> None:
    path = saved(build_model("sam2_hiera_tiny").state_dict(), tmp_path / "old.pt")
    with pytest.raises(ModelError, match=r"no_obj_embed_spatial.*use sam2_hiera_tiny"):
        load_model("sam2.1_hiera_tiny", weights=path)


def test_a_checkpoint_that_does_not_fit_names_the_keys(nano_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state = dict(nano_state)
    del state["maskmem_tpos_enc"]
    state["surplus.weight"] = torch.zeros(1)
    state["no_mem_embed"] = torch.zeros(1, 1, 7)
    with pytest.raises(ModelError) as caught:
        load_model(SMALL, weights=saved(state, tmp_path / "odd.pt"))
    for part in (
        "1 keys missing (maskmem_tpos_enc)",
        "1 keys unexpected (surplus.weight)",
        "1 keys of another shape (no_mem_embed (1, 1, 7) for (1, 1, 128))",
        "odd.pt",
    ):
        assert part in str(caught.value)


class Evil:
    """An object whose unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path = saved({"weight": Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(SMALL, weights=path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 broken"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(SMALL, weights=path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.pt"
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ModelError, match="state dict"):
        load_model(SMALL, weights=path)


def test_missing_weights_say_how_to_get_them() -> None:
    with pytest.raises(ModelError, match=r"models fetch sam2\.1_hiera_tiny"):
        load_model("sam2.1_hiera_tiny")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.pt"):
        load_model(SMALL, weights=tmp_path / "nowhere.pt")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("sam2_nanno", "sam2_nano"), ("SAM2.1_hiera_Tiny", "sam2.1_hiera_tiny"), ("sam2_hiera_lage", "sam2_hiera_large")],
)
def test_a_typo_names_the_nearest_model(typo: str, meant: str) -> None:
    with pytest.raises(ModelError, match=f"did you mean '{meant}'"):
        load_model(typo)


def test_overrides_win_over_file_and_builder() -> None:
    model = build_model(SMALL, {"image_size": 64, "fill_hole_area": 3, "num_maskmem": 4})
    assert (model.image_size, model.fill_hole_area, model.num_maskmem) == (64, 3, 4)


def test_a_configuration_may_only_build_classes_of_sam2(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"model:\n  image_encoder: {{_target_: pathlib.Path.touch, self: {tmp_path / 'ran'}}}\n")
    with pytest.raises(ModelError, match=r"pathlib\.Path\.touch"):
        build_model(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["other: 1", "config: nowhere:x.yaml", "config: sam2:nothing.yaml", "model: ["])
def test_a_configuration_without_a_model_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ModelError):
        build_model(path)


def test_devices() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ModelError, match="'tpu'"):
        resolve_device("tpu")
    with pytest.raises(ModelError, match="CUDA device"):
        resolve_device("cuda:99")
