"""SAM2 models by name: built without Hydra's global state, filled with verified weights, paired with their heads."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints import (
    ModelFile,
    ModelRow,
    ModelSpec,
    cache_root,
    fetch,
    model_names,
    model_spec,
    models_table,
    verify,
    weights_path,
)
from pipeline.checksum import file_sha256
from pipeline.errors import ModelError

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor
    from torch import Tensor

    from usam.heads import HeadBank

__all__ = [
    "LoadedModel",
    "ModelFile",
    "ModelRow",
    "ModelSpec",
    "bank_folders",
    "build_model",
    "cache_root",
    "fetch",
    "load_model",
    "model_names",
    "model_spec",
    "models_table",
    "resolve_device",
    "verify",
    "weights_path",
]

logger = logging.getLogger(__name__)

# What upstream's `build_sam2_video_predictor` adds to its YAML. Deviation: fill_hole_area is 0 (upstream: 8), because
# hole filling needs a compiled extension that the package from PyPI does not have.
# Source: sam2 1.1.0, build_sam.py.
BUILDER_OVERRIDES: dict[str, Any] = {
    "_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor",
    "sam_mask_decoder_extra_args.dynamic_multimask_via_stability": True,
    "sam_mask_decoder_extra_args.dynamic_multimask_stability_delta": 0.05,
    "sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh": 0.98,
    "binarize_mask_from_pts_for_mem_enc": True,
    "fill_hole_area": 0,
}


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run, with what identifies it.

    Attributes:
        name: its registered name.
        model: SAM2's video predictor (a SAM2Base) in eval mode, without gradients.
        image_size: px, the side of its square input.
        sha256: of its weights' file; heads are keyed by it.
        bank: the heads made for exactly these weights, or None (then uncertainty is 1 - sam_score, uncertified).
        device: "cpu", "cuda" or "cuda:N".
        weights: the file that was read.
    """

    name: str
    model: SAM2VideoPredictor = field(repr=False)
    image_size: int
    sha256: str
    bank: HeadBank | None = field(repr=False)
    device: str
    weights: Path


def load_model(
    name: str, *, device: str = "cpu", cache_dir: Path | None = None, weights: Path | None = None
) -> LoadedModel:
    """Load a model by name; never downloads (`fetch` does).

    Args:
        name: one of `model_names()`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        cache_dir: see `pipeline.checkpoints.cache_root`.
        weights: a file to use instead of the registered one: .pt, .pth (tensors only are unpickled) or .safetensors.
    Raises: ModelError if the name is unknown, the device is not there, the weights are missing, not the recorded ones,
        or do not fit the architecture (the message names the keys).
    """
    spec = model_spec(name)
    place = resolve_device(device)
    if weights is None:
        path, sha256 = _verified(name, cache_dir)
    else:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise ModelError(f"the weights of {name} at {path}", "no such file", "give an existing file")
        sha256 = file_sha256(path)
    state = _read_state(path)
    model = build_model(spec.config)
    _fill(model, state, name, path)
    model.to(place)
    bank = _find_bank(sha256, 2 * int(model.hidden_dim), cache_dir)
    return LoadedModel(name, model, int(model.image_size), sha256, bank, place, path)


def build_model(config: str | Path, overrides: Mapping[str, Any] | None = None) -> SAM2VideoPredictor:
    """Build a model with random weights, on the CPU, in eval mode and without gradients.

    Args:
        config: a YAML file with a `model:` tree (or a `config: sam2:PATH` line that names one inside the sam2 package),
            or a registered model's name.
        overrides: dotted keys below `model`, laid over the file and upstream's builder overrides, for example
            `{"image_size": 256}`.
    Returns: what upstream's `build_sam2_video_predictor` returns, with `fill_hole_area=0`.
    Raises: ModelError if the file is missing, is no model, or asks for a class from outside sam2.
    """
    from omegaconf import OmegaConf

    path = Path(config)
    if not path.is_file() and path.suffix not in (".yaml", ".yml"):
        path = model_spec(str(config)).config
    tree = _model_tree(path)
    for key, value in {**BUILDER_OVERRIDES, **(overrides or {})}.items():
        OmegaConf.update(tree, key, value, force_add=True)
    OmegaConf.resolve(tree)
    _refuse_foreign_targets(OmegaConf.to_container(tree), path)
    with _hydra_untouched():
        from hydra.utils import instantiate

        model: SAM2VideoPredictor = instantiate(tree, _recursive_=True)
    model.eval().requires_grad_(False)
    return model


def resolve_device(device: str) -> str:
    """The device to use: "auto" is CUDA when there is one, else the CPU.

    Raises: ModelError for a device that is unknown or not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ModelError("device auto, cpu, cuda or cuda:N", repr(device), "use one of these")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"a CUDA device for {device!r}",
            f"{torch.cuda.device_count()} of them",
            "set model.device to cpu, or install a CUDA build of torch",
        )
    return device


@contextmanager
def _hydra_untouched() -> Iterator[None]:
    """Leave Hydra's global state as it was: `import sam2` initialises it, which breaks a host that uses Hydra."""
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before


def _model_tree(path: Path) -> Any:
    """The `model:` tree of a configuration."""
    from omegaconf import OmegaConf

    try:
        data = OmegaConf.load(path)
    except Exception as error:  # YAML and OmegaConf errors have no common base
        raise ModelError(f"a model configuration at {path}", " ".join(str(error).split()), "repair the file") from error
    reference = OmegaConf.select(data, "config")
    if reference is not None:
        return _model_tree(_inside_package(str(reference), path))
    tree = OmegaConf.select(data, "model")
    if tree is None:
        raise ModelError(f"a `model:` tree in {path}", "none", "start from one of configs/models")
    return tree


def _inside_package(reference: str, source: Path) -> Path:
    """The file that `package:path` names, found without importing the package."""
    package, _, inside = reference.partition(":")
    spec = importlib.util.find_spec(package) if package == "sam2" and inside else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "`config: sam2:PATH` and the sam2 package", f"{reference!r} in {source}", "install sam2==1.1.0"
        )
    return Path(next(iter(spec.submodule_search_locations))) / inside


def _refuse_foreign_targets(node: Any, source: Path) -> None:
    """A configuration may only build sam2's classes: a `_target_` is code that gets called."""
    if isinstance(node, dict):
        target = node.get("_target_", "sam2.")
        if not str(target).startswith("sam2."):
            raise ModelError(
                f"classes of sam2 in {source}", f"_target_: {target}", "use a configuration that you trust"
            )
        for child in node.values():
            _refuse_foreign_targets(child, source)
    elif isinstance(node, list):
        for child in node:
            _refuse_foreign_targets(child, source)


def _verified(name: str, cache_dir: Path | None) -> tuple[Path, str]:
    """A registered model's weights, checked."""
    file = verify(name, cache_dir)
    return file.path, file.sha256


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by key; nothing but tensors is unpickled."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"a checkpoint at {path}", f"a file that cannot be read as one ({reason})", "download it again"
        ) from error
    state = data.get("model", data) if isinstance(data, dict) else data
    if not isinstance(state, dict) or not state or not all(torch.is_tensor(value) for value in state.values()):
        raise ModelError(
            f"a state dict (or one under 'model') in {path}",
            type(state).__name__,
            "use a SAM2 checkpoint as Meta publishes it",
        )
    return state


def _fill(model: SAM2VideoPredictor, state: Mapping[str, Tensor], name: str, path: Path) -> None:
    """Copy weights into a model, all or none.

    Raises: ModelError naming keys that are missing, unexpected, or of another shape.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if state[key].shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} keys {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if not problems:
        model.load_state_dict(state)
        return
    step = "use the checkpoint that belongs to this name, or the name that belongs to this checkpoint"
    if not shapes and not unexpected and "no_obj_embed_spatial" in missing:
        step = f"this is a SAM 2.0 checkpoint: use {name.replace('sam2.1', 'sam2')}"
    elif not shapes and not missing and "no_obj_embed_spatial" in unexpected:
        step = f"this is a SAM 2.1 checkpoint: use {name.replace('sam2_', 'sam2.1_')}"
    raise ModelError(f"the {len(own)} weights of {name} in {path}", "; ".join(problems), step)


def bank_folders(cache_dir: Path | None = None) -> list[Path]:
    """Where heads are looked for: the cache's `heads/` before the package's own."""
    return [cache_root(cache_dir) / "heads", Path(__file__).resolve().parent / "nano" / "weights"]


def _find_bank(sha256: str, width: int, cache_dir: Path | None) -> HeadBank | None:
    """The heads made for exactly these weights, or None.

    Raises: HeadError for a damaged bank, or one that reads tokens of another width.
    """
    from usam.bank_files import bank_path_for
    from usam.weights import load_bank

    path = bank_path_for(sha256, bank_folders(cache_dir))
    return None if path is None else load_bank(path, model_sha256=sha256, width=width)
