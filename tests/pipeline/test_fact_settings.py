"""What makes labelled videos wanted again: settings that change facts, other weights, other heads; nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoints import model_spec, verify, weights_path
from pipeline.errors import HeadError, ModelError
from pipeline.fact_settings import settings_digest
from pipeline.models import bank_folders
from pipeline.settings import load_settings
from usam.bank_files import bank_path_for, install_path


def digest(**overrides: Any) -> str:
    return settings_digest(load_settings(None, {key.replace("__", "."): value for key, value in overrides.items()}))


@pytest.mark.parametrize(
    "change",
    [
        {"model.name": "sam2_micro"}, {"model.precision": "bfloat16"}, {"decode.stride": 2}, {"decode.fps": 5},
        {"decode.start_seconds": 1}, {"decode.end_seconds": 9}, {"decode.decoder": "pyav"},
        {"decode.on_damage": "keep_good_prefix"}, {"propagate.reverse": False}, {"propagate.exact": True},
        {"propagate.max_group": 2}, {"propagate.on_cut": "stop"}, {"propagate.cut_threshold": 0.6},
        {"score.chunk_frames": 8}, {"output.tokens": True}, {"output.candidates": True},
    ],
)  # fmt: skip
def test_what_changes_facts_changes_the_digest(change: dict[str, Any]) -> None:
    assert settings_digest(load_settings(None, change)) != digest()


@pytest.mark.parametrize(
    "change",
    [
        {"policy.max_uncertainty": 0.11}, {"drops.settle_seconds": 1}, {"drops.batch_videos": 3}, {"model.slots": 2},
        {"output.jpeg_quality": 50}, {"storage.region": "eu"}, {"decode.queue_frames": 4},
        {"prompts.on_missing": "auto"},
    ],
)  # fmt: skip
def test_what_leaves_facts_alone_leaves_the_digest(change: dict[str, Any]) -> None:
    assert settings_digest(load_settings(None, change)) == digest()


def test_other_heads_change_it_and_damaged_ones_are_told(tmp_path: Path) -> None:
    before, sha256 = digest(), verify("sam2_nano").sha256
    shipped = bank_path_for(sha256, bank_folders())
    assert shipped is not None
    own = install_path("sam2_nano", sha256, bank_folders()[0])
    own.parent.mkdir(parents=True)
    for suffix in (".safetensors", ".json"):
        shutil.copy(shipped.with_suffix(suffix), own.with_suffix(suffix))
    without_stacker = digest()
    assert without_stacker != before
    assert digest(score__bank=str(shipped)) == before
    card = json.loads(own.with_suffix(".json").read_text())
    own.with_suffix(".json").write_text(json.dumps({**card, "mask_token_offset": 0}))
    assert digest() not in (before, without_stacker)
    own.write_bytes(own.read_bytes()[:-1] + b"x")
    with pytest.raises(HeadError, match="copy the bank again"):
        digest()


def test_a_model_that_was_not_fetched_is_told_when_planning() -> None:
    with pytest.raises(ModelError, match=r"masksieve models fetch sam2\.1_hiera_tiny"):
        digest(model__name="sam2.1_hiera_tiny")
    path = weights_path(model_spec("sam2.1_hiera_tiny"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"one")
    one = digest(model__name="sam2.1_hiera_tiny")
    path.write_bytes(b"two")
    path.with_name(f"{path.name}.sha256").unlink()
    assert digest(model__name="sam2.1_hiera_tiny") != one


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys; from pipeline.fact_settings import settings_digest; from pipeline.settings import load_settings;"
        " settings_digest(load_settings()); print([name for name in ('torch', 'sam2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
