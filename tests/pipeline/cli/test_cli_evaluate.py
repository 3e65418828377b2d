"""`masksieve usam evaluate` and `compare` write what they judged, and refuse in one line what cannot be judged."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cli import main
from usam.heads import HeadBank
from usam.isotonic import Isotonic
from usam.shard import Shard
from usam.weights import save_bank

Make = Callable[..., Shard]
Bank = Callable[..., HeadBank]
FEW = ("--replicates", "10")


def call(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


def published_folder(bank: HeadBank, folder: Path) -> Path:
    for name, state in zip(bank.names, bank.states(), strict=True):
        (folder / name).mkdir(parents=True)
        torch.save(state, folder / name / "model.pth")
    return folder


def scores(file: Path, column: str = "score") -> set[str]:
    return {row[column] for row in csv.DictReader(file.open())}


def test_compare_puts_everything_on_the_same_rows(
    judged_shard: Make, reading_bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard, training = judged_shard(), judged_shard("train", seed=1, prefix="w")
    ours = save_bank(reading_bank(), tmp_path / "ours.safetensors")
    theirs = published_folder(reading_bank(), tmp_path / "published")
    out = tmp_path / "out"
    words = ("--bank", ours, "--bank", f"theirs={theirs}", "--isotonic", training.path, "--out", out, *FEW)
    assert call("usam", "compare", shard.path, *words) == 0
    told = capsys.readouterr().out
    assert "ahead of sam_score_isotonic" in told
    names = {"ours", "ours_differences", "theirs", "theirs_differences", "sam_score", "sam_score_isotonic", "H_Std"}
    assert scores(out / "scores.csv") == scores(out / "replacement.csv") == names
    assert scores(out / "replacement.csv", "scope") == {"model", "prompt", "task", "segmentation"}
    assert len({row["rows"] for row in csv.DictReader((out / "quality.csv").open())}) == 1
    assert Isotonic.from_json((out / "isotonic.json").read_text())([0.5]) >= 0
    assert (out / "replacement.png").stat().st_size > 10_000
    assert "fed" not in (out / "evaluation.md").read_text()


def test_evaluate_says_what_each_head_does(
    judged_shard: Make, reading_bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = judged_shard(kind="tracked")
    bank = save_bank(reading_bank(("iou_tracked", "model_gap", "prompt_gap")), tmp_path / "ours.safetensors")
    out = tmp_path / "out"
    assert call("usam", "evaluate", shard.path, "--bank", bank, "--out", out, "--runtime", "0", *FEW) == 0
    assert scores(out / "heads_ours.csv", "head") == {"iou_tracked", "model_gap", "prompt_gap"}
    text = (out / "evaluation.md").read_text()
    assert "fed the IoU token and its own mask token" in text
    assert "12 rows on prompted frames are left out" in text
    assert "(A - A_random) / (A_oracle - A_random)" in text
    assert "1 - iou_tracked" in text
    assert "ours " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"shard": "nothing"}, 2, "no folder"),
        ({"bank": "nothing.safetensors"}, 2, "nothing there"),
        ({"bank": "installed"}, 2, "heads installed for sam2_nano"),
        ({"bank": "a/b=x"}, 2, "a name of its own"),
        ({"of": "first"}, 1, "chosen or best"),
        ({"size": "large"}, 1, "harvest that model too"),
        ({"isotonic": "shard"}, 1, "12 in both"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(
    judged_shard: Make,
    reading_bank: Bank,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    code: int,
    message: str,
) -> None:
    judged_shard()
    save_bank(reading_bank(), tmp_path / "ours.safetensors")
    given = {"shard": "shard", "bank": "ours.safetensors", "of": "chosen", **change}
    words: list[str | Path] = [tmp_path / str(given.pop("shard")), "--out", tmp_path / "out", *FEW]
    bank = str(given.pop("bank"))
    words += ["--bank", bank if "=" in bank or bank == "installed" else tmp_path / bank]
    if "isotonic" in given:
        given["isotonic"] = tmp_path / str(given["isotonic"])
    for option, value in given.items():
        words += [f"--{option}", value]
    assert call("usam", "compare", *words) == code
    told = capsys.readouterr()
    assert message in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_two_banks_of_one_name_are_refused(
    judged_shard: Make, reading_bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = save_bank(reading_bank(), tmp_path / "ours.safetensors")
    words = ("--bank", bank, "--bank", f"ours={bank}", "--out", tmp_path / "out")
    assert call("usam", "compare", judged_shard().path, *words) == 2
    assert "a name of its own" in capsys.readouterr().err


def test_a_file_is_no_place_for_a_report(
    judged_shard: Make, reading_bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = save_bank(reading_bank(), tmp_path / "ours.safetensors")
    for command in ("compare", "evaluate"):
        assert call("usam", command, judged_shard(command).path, "--bank", bank, "--out", bank) == 2
        assert "a folder for the report" in capsys.readouterr().err
