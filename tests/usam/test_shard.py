"""A shard gives back what was written, refuses what cannot be right, and survives a crash at any moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usam.errors import HeadError, ShapeError
from usam.shard import ROWS, Plan, Shard, ShardWriter

UNIT = st.floats(0, 1, width=32)


def plan(kind: str = "frames", **protocol: Any) -> Plan:
    return Plan(kind, {"tiny": {"name": "m", "sha256": "0" * 64}}, "tiny", "synthetic", "train", protocol)


def columns(n: int, **others: Any) -> dict[str, Any]:
    fixed = {
        "frame_index": np.arange(n),
        "object_id": np.ones(n, np.int64),
        "size": ["tiny"] * n,
        "prompted": np.zeros(n, bool),
        "visible": np.ones(n, bool),
        "predicted": np.ones(n, bool),
        "chosen": np.arange(n) % 4,
        "best": np.arange(n) % 3 + 1,
        "sam_score": np.full(n, 0.5),
        "iou_chosen": np.full(n, 0.25),
    }
    return fixed | others


def tokens(n: int, d: int = 2) -> Any:
    """Token t of row n is filled with 10 n + t: 0 the IoU token, then mask tokens 0..3."""
    values = 10 * np.arange(n)[:, None] + np.arange(5)
    return np.repeat(values[..., None], d, 2).astype(np.float32)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def written(path: Path, videos: tuple[str, ...] = ("a", "b"), **others: Any) -> Shard:
    writer = ShardWriter(path, plan())
    for video in videos:
        if not writer.done(video):
            writer.add(video, columns(3, **others), tokens(3))
    return writer.finish(videos)


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return written(tmp_path / "s")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 3), min_size=1, max_size=4
    ),
    value=UNIT | st.none(),
    reverse=st.booleans(),
)
def test_rows_come_back_in_the_order_asked_for_whatever_the_videos_are_called(
    tmp_path: Path, counts: dict[str, int], value: float | None, reverse: bool
) -> None:
    path = tmp_path / "any"
    shutil.rmtree(path, ignore_errors=True)
    writer = ShardWriter(path, plan())
    for video in reversed(counts) if reverse else counts:
        n = counts[video]
        writer.add(video, columns(n, iou=[value] * n) if n else {}, tokens(n))
    if not sum(counts.values()):
        with pytest.raises(HeadError, match="at least one row"):
            writer.finish(list(counts))
        return
    got = writer.finish(list(counts))
    assert got.column("video_id").tolist() == [video for video, n in counts.items() for _ in range(n)]
    assert np.array_equal(got.tokens_n5d, np.concatenate([tokens(n) for n in counts.values()]))
    wanted = [np.nan if value is None else np.float32(value)] * len(got)
    assert np.array_equal(got.column("iou"), np.array(wanted, np.float32), equal_nan=True)
    assert got.has("iou") is (value is not None)


def test_heads_are_fed_the_token_of_the_mask_that_was_asked_for(shard: Shard) -> None:
    # chosen is 0, 1, 2 and best is 1, 2, 3 of the rows; mask token j is filled with 10 n + 1 + j
    def mask_token(**how: Any) -> list[float]:
        pairs = shard.pairs(np.arange(3), **how)
        assert pairs.shape == (3, shard.width) == (3, 4)
        assert pairs[:, 0].tolist() == [0, 10, 20]
        return list(pairs[:, 2])

    assert mask_token() == [1, 12, 23]
    assert mask_token(offset=0) == [1, 11, 22]  # the single mask has token 0 either way
    assert mask_token(of="best") == [2, 13, 24]
    assert mask_token(of="best", offset=0) == [1, 12, 23]
    keep = shard.column("frame_index") == 1
    assert np.array_equal(shard.pairs(keep), shard.pairs(np.flatnonzero(keep)))
    for wrong in ({"offset": 2}, {"of": "worst"}):
        with pytest.raises(HeadError, match="offset 0 or 1"):
            shard.pairs(**wrong)


@pytest.mark.parametrize("kind", ["frames", "tracked"])
def test_targets_are_shifted_gaps_and_nothing_where_nothing_was_measured(tmp_path: Path, kind: str) -> None:
    writer = ShardWriter(tmp_path / "s", plan(kind))
    ious = {"iou": [0.5, 0.9], "iou_dense_prompt": [0.75, None], "iou_unsupervised": [0.25, 0.9]}
    tracked = {"iou_tracked": [0.25, 0.5]} if kind == "tracked" else {}
    writer.add("a", columns(2, **ious, **tracked), tokens(2))
    got = writer.finish(["a"])
    # on propagated frames more clicks replace the propagated mask, not the best of three
    assert got.target("prompt_gap")[0] == (1.0 if kind == "tracked" else 0.75)
    assert np.isnan(got.target("prompt_gap")[1])
    assert got.target("task_gap").tolist() == [0.75, 0.5]
    assert np.isnan(got.target("model_gap")).all()
    measured = {"iou_dense_prompt", "iou_unsupervised", "prompt_gap", "task_gap", *tracked}
    assert set(got.heads()) == measured
    with pytest.raises(HeadError, match="a head out of"):
        got.target("iou")
    with pytest.raises(HeadError, match="a column out of"):
        got.column("nope")


def test_wrong_rows_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", plan())
    bad = tokens(2)
    bad[1, 3, 0] = np.nan
    wrong: list[tuple[type[Exception], str, dict[str, Any], Any]] = [
        (HeadError, "columns out of", columns(2, iuo=[0, 0]), tokens(2)),
        (ShapeError, "values per column", columns(2, iou=[0.5]), tokens(2)),
        (ShapeError, "tokens", columns(2), tokens(2)[:, :4]),
        (ShapeError, "tokens", columns(2), tokens(3)),
        (HeadError, "finite tokens of a", columns(2), bad),
        (HeadError, "finite iou of a", columns(2, iou=[0.5, np.nan]), tokens(2)),
        (HeadError, "finite sam_score of a", columns(2, sam_score=[np.inf, 0.0]), tokens(2)),
    ]
    for error, match, values, array in wrong:
        with pytest.raises(error, match=match):
            writer.add("a", values, array)
        assert not writer.done("a")
    with pytest.raises(HeadError, match="rows of every video, got none of a"):
        writer.finish(["a"])


def test_tokens_of_two_widths_are_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", plan())
    writer.add("a", columns(1), tokens(1, 2))
    writer.add("b", columns(1), tokens(1, 3))
    with pytest.raises(HeadError, match="one width"):
        writer.finish(["a", "b"])


def test_another_plan_never_mixes_with_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "s"
    ShardWriter(path, plan(seed=0)).add("a", columns(1), tokens(1))
    for _ in range(2):  # half-way, then finished
        with pytest.raises(HeadError, match="another protocol"):
            ShardWriter(path, plan(seed=1))
        ShardWriter(path, plan(seed=0)).finish(["a"])
    assert ShardWriter(path, plan(seed=0)).done("never heard of")  # a finished one has all there is to do


def test_a_kind_and_a_deployed_size_must_be_known() -> None:
    with pytest.raises(HeadError, match="'film'"):
        plan("film")
    with pytest.raises(HeadError, match="'large'"):
        Plan("frames", {"tiny": {}}, "large", "d", "s", {})


@pytest.mark.parametrize("step", ["rmtree", "tokens.npy", "rows.parquet", "shard.json"])
def test_a_crash_while_publishing_ends_in_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    written(tmp_path / "whole")
    crashed = tmp_path / "crashed"
    replace: Callable[..., Path] = Path.replace

    def die(self: Path, target: Path) -> Path:
        if Path(target) == crashed / step:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", die)
        patched.setattr("usam.shard.os.getpid", lambda: 1)  # the next run is another process
        if step == "rmtree":
            patched.setattr("usam.shard.shutil.rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            written(crashed)
    assert written(crashed).column("video_id").tolist() == ["a", "a", "a", "b", "b", "b"]
    assert files(crashed) == files(tmp_path / "whole")


def test_a_shard_that_is_not_whole_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="got none; harvest first"):
        Shard.open(tmp_path / "nowhere")
    half = tmp_path / "half"
    ShardWriter(half, plan()).add("a", columns(1), tokens(1))
    with pytest.raises(HeadError, match="not finished; run the same"):
        Shard.open(half)
    whole = files(written(tmp_path / "s").path)
    damages: dict[str, Callable[[bytes], bytes]] = {
        "shard.json": lambda data: data[:40],
        "rows.parquet": lambda data: data[: len(data) // 2],
        "tokens.npy": lambda data: data[: len(data) // 2],
    }
    for name, damage in damages.items():
        path = tmp_path / f"damaged {name}"
        path.mkdir()
        for other, data in whole.items():
            (path / other).write_bytes(damage(data) if other == name else data)
        with pytest.raises(HeadError, match="harvest again"):
            Shard.open(path)
    values = json.loads(whole["shard.json"]) | {"format": "masksieve-usam-0"}
    (tmp_path / "s" / "shard.json").write_text(json.dumps(values))
    with pytest.raises(HeadError, match="masksieve-usam-0"):
        Shard.open(tmp_path / "s")


def test_what_the_columns_are_called_is_part_of_the_format() -> None:
    assert {"video_id", "size", "iou_chosen", "iou_tracked", "H_Y", "candidate_iou_2"} <= set(ROWS.names)
    assert [field.name for field in ROWS if not field.nullable][:3] == ["video_id", "frame_index", "object_id"]
