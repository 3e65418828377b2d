"""`masksieve usam train`: shards in, a bank out; mistakes of the call are told in one line before any training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from usam.bank_files import read_card
from usam.shard import Plan, Shard, ShardWriter
from usam.weights import load_bank


def _run(*words: object) -> int:
    with pytest.raises(SystemExit) as exited:
        main([str(word) for word in words])
    return exited.value.code if isinstance(exited.value.code, int) else int(exited.value.code is not None)


def _shard(path: Path, first: int = 0, d: int = 4) -> Shard:
    models = {"tiny": {"name": "sam2_nano", "sha256": "a" * 64}}
    writer = ShardWriter(path, Plan("tracked", models, "tiny", "toy", "train", {}))
    names = [f"v{i}" for i in range(first, first + 5)]
    for number, name in enumerate(names, first):
        rng = np.random.default_rng(number)
        iou = rng.random(10).tolist()
        columns = {
            "frame_index": range(10),
            "object_id": [1] * 10,
            "size": ["tiny"] * 10,
            "prompted": [False] * 10,
            "visible": [True] * 10,
            "predicted": [True] * 10,
            "chosen": [1] * 10,
            "best": [1] * 10,
            "sam_score": iou,
        }
        columns |= dict.fromkeys(("iou_chosen", "iou_tracked", "iou_unsupervised", "iou"), iou)
        writer.add(name, columns, rng.normal(size=(10, 5, d)))
    return writer.finish(names)


def test_a_bank_and_its_card_are_written_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard, held = _shard(tmp_path / "s"), _shard(tmp_path / "h", first=9)
    out = tmp_path / "banks" / "b.safetensors"
    words = ("usam", "train", shard.path, "--out", out, "--heldout", held.path, "--heads", "iou_tracked,task_gap")
    assert _run(*words) == 0
    printed = capsys.readouterr()
    assert "trained on 50 rows of 5 videos, ours, token offset 1 of the chosen mask" in printed.out
    assert "heads start at random" in printed.err  # the shard's model is not the one that is here
    assert load_bank(out, width=8).heads == ("task_gap", "iou_tracked")
    assert read_card(out)["heldout"]["iou_tracked"]["judged"]["rows"] == 50
    assert sorted(path.name for path in out.parent.iterdir()) == ["b.json", "b.safetensors"]
    before = out.read_bytes()
    assert _run(*words) == 0
    assert out.read_bytes() == before


def test_a_published_recipe_is_searched_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard, out = _shard(tmp_path / "s"), tmp_path / "b.safetensors"
    words = ("usam", "train", shard.path, "--out", out, "--heads", "iou_tracked", "--recipe", "published:sav")
    assert _run(*words, "--search", 2) == 0
    assert "token offset 0 of the best mask" in capsys.readouterr().out
    assert (tmp_path / "b.search.db").is_file()
    assert read_card(out)["recipe"]["optimizer"] == "sgd"


def test_mistakes_of_the_call_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = _shard(tmp_path / "s")
    out = ("--out", tmp_path / "b.safetensors")
    for words, told in (
        ((tmp_path / "none", *out), "a harvest in"),
        ((shard.path, "--out", tmp_path / "b.pt"), "b.pt; give it that ending"),
        ((shard.path, *out, "--heads", "iou_huge"), "a head out of"),
        ((shard.path, *out, "--heads", "model_gap"), "a target of model_gap on some row, got NaN on every row"),
        ((shard.path, *out, "--heads", " , "), "--heads"),
        ((shard.path, *out, "--recipe", "published:imagenet"), "coco, sav, ade20k, davis or mose"),
        ((shard.path, *out, "--heldout", shard.path), "5 in both"),
        ((shard.path, *out, "--size", "large"), "a size out of tiny"),
        ((shard.path, *out, "--offset", 2), "offset 0 or 1"),
        ((shard.path, *out, "--start", "warm"), "--start out of auto, score, random"),
    ):
        assert _run("usam", "train", *words) == 2
        error = capsys.readouterr().err
        assert told in error
        assert len(error.strip().splitlines()) == 1
    assert _run("usam", "train", shard.path, *out, "--start", "score") == 1
    assert "or give --start random" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()
