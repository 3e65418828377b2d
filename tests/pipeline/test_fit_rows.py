"""Rows to fit heads on: from videos with truth, and from reviewed masks with kept tokens; both say the same."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import rle
from pipeline.demo import DEMO_CLIPS, make_drop
from pipeline.errors import HeadError, PromptError
from pipeline.fit_reviewed import harvest_reviewed, read_reviewed
from pipeline.fit_triples import find_triples, harvest_triples
from pipeline.label import label_video
from pipeline.models import LoadedModel, load_model
from pipeline.settings import load_settings
from pipeline.source import video_sha256
from pipeline.storage.objects import ObjectStore
from usam.heads import HeadBank, HeadCard
from usam.shard import Shard

FRAMES = 5
Change = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return load_model("sam2_nano")


@pytest.fixture(scope="module")
def drop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drop")
    make_drop(folder, DEMO_CLIPS[:2], num_frames=FRAMES)
    return folder


def label(drop: Path, out: Path, model: LoadedModel, *names: str, tokens: bool = True) -> Path:
    settings = load_settings(None, {"output.tokens": tokens, "output.review_frames": False, "output.candidates": False})
    for name in names:
        label_video(str(drop / f"{name}.mp4"), drop / f"{name}.prompts.json", str(out), settings, model=model)
    return out


@pytest.fixture(scope="module")
def labels(drop: Path, nano: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return label(drop, tmp_path_factory.mktemp("labels"), nano, *(clip.name for clip in DEMO_CLIPS[:2]))


@pytest.fixture(scope="module")
def triples(drop: Path, nano: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return harvest_triples(find_triples(drop), nano, load_settings(), tmp_path_factory.mktemp("triples"))


@pytest.fixture(scope="module")
def truth(drop: Path) -> pd.DataFrame:
    """The true mask of every object on every frame, as a reviewer would hand it in."""
    rows = []
    for clip in DEMO_CLIPS[:2]:
        ids_thw = np.load(drop / f"{clip.name}.truth.npz")["ids_thw"]
        video_id = video_sha256(drop / f"{clip.name}.mp4")
        for frame, ids_hw in enumerate(ids_thw):
            rows += [
                {
                    "video_id": video_id, "frame_index": frame, "object_id": int(object_id),
                    "rle": rle.encode_mask(ids_hw == object_id).counts, "height": ids_hw.shape[0],
                    "width": ids_hw.shape[1],
                }
                for object_id in np.unique(ids_thw) if object_id
            ]  # fmt: skip
    return pd.DataFrame(rows)


def reviewed(table: pd.DataFrame, labels: Path, model: LoadedModel, tmp_path: Path) -> tuple[Shard, int]:
    table.to_parquet(tmp_path / "reviewed.parquet")
    return harvest_reviewed(
        read_reviewed(tmp_path / "reviewed.parquet"), ObjectStore(labels), model, tmp_path / "shard"
    )


def key(shard: Shard, videos: dict[str, str] | None = None) -> list[tuple[str, int, int]]:
    names = [(videos or {}).get(name, name) for name in shard.column("video_id")]
    return list(zip(names, shard.column("frame_index").tolist(), shard.column("object_id").tolist(), strict=True))


def test_reviewed_masks_give_the_rows_that_the_videos_give_themselves(
    drop: Path, labels: Path, truth: pd.DataFrame, triples: Shard, nano: LoadedModel, tmp_path: Path
) -> None:
    shard, offset = reviewed(truth, labels, nano, tmp_path)
    videos = {clip.name: video_sha256(drop / f"{clip.name}.mp4") for clip in DEMO_CLIPS[:2]}
    places = {k: row for row, k in enumerate(key(triples, videos))}
    rows = [places[k] for k in key(shard)]
    assert offset == 1
    assert len(shard) == len(triples) >= 2 * FRAMES
    for name in ("prompted", "visible", "predicted", "chosen"):
        np.testing.assert_array_equal(shard.column(name), triples.column(name)[rows], err_msg=name)
    np.testing.assert_allclose(shard.column("iou_tracked"), triples.column("iou_tracked")[rows], atol=2e-3)
    np.testing.assert_allclose(shard.column("sam_score"), triples.column("sam_score")[rows], atol=1e-5)
    np.testing.assert_allclose(shard.pairs(), triples.pairs(rows), rtol=2e-3, atol=2e-3)  # kept as fp16
    assert shard.heads() == ["iou_tracked"]


def test_kept_tokens_make_the_heads_say_what_the_labels_say(
    labels: Path, truth: pd.DataFrame, nano: LoadedModel, tmp_path: Path
) -> None:
    shard, offset = reviewed(truth, labels, nano, tmp_path)
    assert nano.bank is not None
    says = nano.bank(torch.from_numpy(shard.pairs(offset=offset)))["iou_tracked"].numpy()
    facts = pd.read_parquet(labels / "masks").set_index(["video_id", "frame_index", "object_id"])
    np.testing.assert_allclose(says, facts.loc[key(shard), "iou_tracked"], atol=2e-3)


@pytest.mark.slow
def test_tokens_kept_for_published_heads_are_taken_as_such(
    drop: Path, truth: pd.DataFrame, nano: LoadedModel, tmp_path: Path
) -> None:
    assert nano.bank is not None
    bank = HeadBank(nano.bank.names, nano.bank.states(), HeadCard(nano.name, nano.sha256, mask_token_offset=0))
    name = DEMO_CLIPS[0].name
    labels = label(drop, tmp_path / "labels", replace(nano, bank=bank), name)
    shard, offset = reviewed(truth, labels, nano, tmp_path)  # the bank has been replaced since
    assert offset == 0
    says = bank(torch.from_numpy(shard.pairs(offset=0)))["iou_tracked"].numpy()
    facts = pd.read_parquet(labels / "masks").set_index(["video_id", "frame_index", "object_id"])
    np.testing.assert_allclose(says, facts.loc[key(shard), "iou_tracked"], atol=2e-3)


def test_an_iou_column_counts_and_rows_without_a_judgement_are_left_out(
    labels: Path, truth: pd.DataFrame, nano: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = truth.assign(iou=np.linspace(0.1, 0.9, len(truth)))  # beside rle, which may still be the prediction
    table.loc[1, "iou"] = np.nan
    table.loc[2, "object_id"] = 77
    with caplog.at_level(logging.WARNING):
        shard, _ = reviewed(table, labels, nano, tmp_path)
    assert len(shard) == len(table) - 2
    assert "left out 1 reviewed rows whose iou or rle is empty" in caplog.text
    assert "left out 1 reviewed rows that match no scored mask" in caplog.text
    wanted = table.set_index(["video_id", "frame_index", "object_id"]).loc[key(shard), "iou"]
    np.testing.assert_allclose(shard.column("iou_tracked"), wanted, atol=1e-6)


def _set(column: str, value: Any) -> Change:
    return lambda table: table.assign(**{column: value})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.iloc[:3].assign(video_id="0" * 64), "match none"),
        (lambda table: table.iloc[:3].assign(video_id="no such video"), "match none"),
        (lambda table: table.assign(frame_index=table.frame_index + 900), "match none"),
        (_set("width", 100), "at the video's size"),
        (_set("rle", b"_broken"), "compressed counts"),
        (_set("iou", 92.0), "not percent"),
        (_set("iou", np.nan), "fill the column in"),
        (_set("iou", 1.0), "not the predictions"),
        (_set("iou", "good"), "readable reviewed rows"),
        (lambda table: table.drop(columns="height"), "no height"),
        (lambda table: table.drop(columns="object_id"), "no object_id"),
        (lambda table: table.iloc[:0], "fill the column in"),
        (lambda table: pd.concat([table, table.iloc[:1].assign(rle=table.rle[3])]), "two that differ"),
    ],
)
def test_reviewed_rows_that_cannot_be_used_are_named(
    change: Change, says: str, labels: Path, truth: pd.DataFrame, nano: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(HeadError, match=says):
        reviewed(change(truth), labels, nano, tmp_path)
    assert not (tmp_path / "shard" / "shard.json").exists()


def test_predictions_that_nobody_corrected_are_no_truth(labels: Path, nano: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="not the predictions"):
        harvest_reviewed(read_reviewed(labels / "labels"), ObjectStore(labels), nano, tmp_path / "shard")
    with pytest.raises(HeadError, match="Parquet at"):
        read_reviewed(tmp_path)
    (tmp_path / "notes.parquet").write_text("good")
    with pytest.raises(HeadError, match="readable reviewed rows"):
        read_reviewed(tmp_path / "notes.parquet")


def test_an_output_of_another_model_or_without_tokens_is_refused(
    drop: Path, labels: Path, truth: pd.DataFrame, nano: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(HeadError, match="the model that labelled them"):
        reviewed(truth, labels, replace(nano, sha256="0" * 64), tmp_path)
    plain = label(drop, tmp_path / "plain", nano, DEMO_CLIPS[0].name, tokens=False)
    with pytest.raises(HeadError, match=r"output\.tokens=true"):
        reviewed(truth, plain, nano, tmp_path)


def test_rows_of_videos_hold_the_masks_quality_and_all_tokens(triples: Shard) -> None:
    assert triples.heads() == ["iou_unsupervised", "task_gap", "iou_tracked"]
    assert (triples.column("iou") >= triples.column("iou_tracked")).all()
    assert (triples.column("prompted") == (triples.column("frame_index") == 0)).all()
    assert np.isfinite(triples.column("temporal_iou")).all()
    assert np.abs(triples.tokens_n5d).max(2).min() > 0


@pytest.mark.slow
def test_truth_that_does_not_fit_its_video_is_named(drop: Path, nano: LoadedModel, tmp_path: Path) -> None:
    folder, (first, second) = tmp_path / "drop", DEMO_CLIPS[:2]
    shutil.copytree(drop, folder)
    truth = folder / f"{first.name}.truth.npz"
    ids_thw = np.load(truth)["ids_thw"]

    def harvested() -> Shard:
        return harvest_triples(find_triples(folder), nano, load_settings(), tmp_path / "shard")

    for wrong, says in (
        (ids_thw[:, :9, :9], rf"\({FRAMES}, 9, 9\)"),
        (ids_thw[0], "whole numbers"),
        (ids_thw.astype(float), "whole numbers"),
        (np.where(ids_thw > 0, 200, 0).astype(np.uint8), "alike in prompts and truth"),
    ):
        np.savez_compressed(truth, ids_thw=wrong)
        shutil.rmtree(tmp_path / "shard", ignore_errors=True)
        with pytest.raises(HeadError, match=says):
            harvested()
    truth.write_bytes(b"PK")
    shutil.rmtree(tmp_path / "shard", ignore_errors=True)
    with pytest.raises(HeadError, match="savez_compressed"):
        harvested()
    prompts = folder / f"{first.name}.prompts.json"
    given = prompts.read_bytes()
    prompts.write_text("{}")
    np.savez_compressed(truth, ids_thw=ids_thw)
    shutil.rmtree(tmp_path / "shard")
    with pytest.raises(PromptError):
        harvested()
    prompts.write_bytes(given)
    (folder / f"{second.name}.prompts.json").unlink()
    with pytest.raises(HeadError, match=rf"{second.name}\.prompts\.json beside"):
        find_triples(folder)
    (folder / f"{second.name}.truth.npz").unlink()
    with pytest.raises(HeadError, match="at least two videos"):
        find_triples(folder)
    (folder / f"{first.name}.mp4").unlink()
    with pytest.raises(HeadError, match="one video"):
        find_triples(folder)


def test_rows_of_files_that_changed_are_not_gone_on_with(
    drop: Path, nano: LoadedModel, triples: Shard, tmp_path: Path
) -> None:
    folder = tmp_path / "drop"
    shutil.copytree(drop, folder)  # with the times of the files
    again = harvest_triples(find_triples(folder), nano, load_settings(), triples.path)
    assert len(again) == len(triples)
    np.savez_compressed(folder / f"{DEMO_CLIPS[0].name}.truth.npz", ids_thw=np.zeros((FRAMES, 256, 256), np.uint8))
    with pytest.raises(HeadError, match="another protocol"):
        harvest_triples(find_triples(folder), nano, load_settings(), triples.path)
