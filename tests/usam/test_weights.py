"""Banks survive the disk, belong to one model, and are found by its checksum."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from usam.bank_files import bank_path_for, install_path
from usam.errors import HeadError
from usam.heads import HeadBank, HeadCard
from usam.weights import import_published, load_bank, save_bank

SHA, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def bank(make_state: Callable[..., Any]) -> HeadBank:
    card = HeadCard("sam2_nano", SHA, 1, {"lr": 0.1}, {"iou_tracked": {"pearson": 0.6}})
    return HeadBank(["iou_tracked", "iou_tracked", "task_gap"], [make_state(seed=i) for i in range(3)], card)


def test_a_bank_is_the_same_after_the_disk(bank: HeadBank, tmp_path: Path) -> None:
    path = save_bank(bank, tmp_path / "heads" / "x.safetensors")
    again = load_bank(path, model_sha256=SHA, width=8)
    tokens = torch.randn(3, 8)
    assert torch.equal(bank.stacked(tokens), again.stacked(tokens))
    assert (again.card, again.names) == (bank.card, bank.names)
    assert sorted(p.name for p in path.parent.iterdir()) == ["x.json", "x.safetensors"]


def test_two_writes_are_byte_identical(bank: HeadBank, tmp_path: Path) -> None:
    a, b = save_bank(bank, tmp_path / "a.safetensors"), save_bank(bank, tmp_path / "b.safetensors")
    assert a.read_bytes() == b.read_bytes()


def test_a_bank_of_another_model_is_refused(bank: HeadBank, tmp_path: Path) -> None:
    path = save_bank(bank, tmp_path / "x.safetensors")
    with pytest.raises(HeadError, match="heads of sam2_nano aaaaaaaaaaaa"):
        load_bank(path, model_sha256=OTHER)
    with pytest.raises(HeadError, match="width 512"):
        load_bank(path, width=512)


def test_a_damaged_bank_is_refused(bank: HeadBank, tmp_path: Path) -> None:
    path = save_bank(bank, tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(HeadError, match="copy the bank again"):
        load_bank(path)


def test_a_bank_without_its_card_is_refused(bank: HeadBank, tmp_path: Path) -> None:
    path = save_bank(bank, tmp_path / "x.safetensors")
    path.with_suffix(".json").unlink()
    with pytest.raises(HeadError, match="a card at"):
        load_bank(path)


def test_banks_are_found_by_checksum_whatever_else_lies_there(bank: HeadBank, tmp_path: Path) -> None:
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "a.json").write_text("not json")
    (folder / "b.json").write_text(json.dumps({"model_sha256": SHA}))
    (folder / "b.safetensors").write_bytes(b"a model's own weights")
    path = save_bank(bank, install_path("sam2_nano", SHA, folder))
    assert bank_path_for(SHA, [tmp_path / "missing", folder]) == path
    assert bank_path_for(OTHER, [folder]) is None


def test_published_folders_are_imported(make_state: Callable[..., Any], tmp_path: Path) -> None:
    states = {"iou_large": make_state(seed=1), "task_gap": make_state(seed=2)}
    for name, state in states.items():
        (tmp_path / name).mkdir()
        torch.save(state, tmp_path / name / "model.pth")
    (tmp_path / "notes").mkdir()
    bank = import_published(tmp_path, HeadCard("sam2.1_hiera_large", SHA, mask_token_offset=0))
    assert bank.heads == ("iou_large", "task_gap")
    assert bank.mask_token_offset == 0
    assert torch.equal(bank.states()[1]["layers.0.weight"], states["task_gap"]["layers.0.weight"])


def test_a_pickled_object_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "iou_large").mkdir()
    torch.save(Path("x"), tmp_path / "iou_large" / "model.pth")
    with pytest.raises(HeadError, match="plain state dict"):
        import_published(tmp_path, HeadCard("m", SHA))


def test_a_folder_without_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="name folders after heads"):
        import_published(tmp_path, HeadCard("m", SHA))
