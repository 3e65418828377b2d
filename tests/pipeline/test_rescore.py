"""Other heads over stored tokens: what `label` would have made with them, whatever is killed or comes in between."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.label
from pipeline.checksum import file_sha256
from pipeline.cli.entry import main
from pipeline.derive import derive
from pipeline.errors import SettingsError
from pipeline.gc import Sweep
from pipeline.label import label_video
from pipeline.ledger import Commit, CommitConflict, Ledger
from pipeline.models import LoadedModel, load_model
from pipeline.records import HEAD_COLUMNS, read_metadata
from pipeline.rescore import Rescored, chosen_videos, rescore_all
from pipeline.settings import Settings, load_settings
from pipeline.storage.objects import ObjectStore
from usam.heads import HeadBank
from usam.stacker import Stacker
from usam.weights import bank_sha256, heads_sha256, load_bank, save_bank

from .conftest import S3Server

SCORES = (*HEAD_COLUMNS, "iou_stacked")
FP16 = 3e-4
"""By so much a score from tokens kept in fp16 may differ; 4.4e-5 was the most over the drop of these tests."""


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return load_model("sam2_nano")


@pytest.fixture(scope="module")
def other(nano: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads and a stacker for the model that say something else than its own."""
    assert nano.bank is not None
    assert nano.bank.stacker is not None
    states = [state | {"layers.2.bias": state["layers.2.bias"] + 0.7} for state in nano.bank.states()]
    bank = HeadBank(nano.bank.names, states, nano.bank.card)
    card = dataclasses.replace(nano.bank.stacker.card, heads_sha256=heads_sha256(bank))
    bank.stacker = Stacker(nano.bank.stacker.states(), card)
    return save_bank(bank, tmp_path_factory.mktemp("bank") / "other.safetensors")


def settings(bank: Path | None = None, **more: Any) -> Settings:
    return load_settings(None, {"score.bank": None if bank is None else str(bank), "output.tokens": True, **more})


def rescore(out: Path, bank: Path | None = None, videos: list[str] | None = None) -> dict[str, Rescored]:
    store = ObjectStore(out)
    wanted = chosen_videos(Ledger(store)) if videos is None else videos
    return {one.video_id: one for one in rescore_all(store, wanted, settings(bank))}


@pytest.fixture
def run() -> Callable[..., int]:
    """Call the command line, give back its exit code."""

    def call(*words: object) -> int:
        with pytest.raises(SystemExit) as exited:
            main([str(word) for word in words])
        assert isinstance(exited.value.code, int)
        return exited.value.code

    return call


def statuses(found: dict[str, Rescored]) -> list[str]:
    return [one.status for one in found.values()]


def newest(out: Path) -> list[Commit]:
    return sorted(Ledger(ObjectStore(out)).read_all(), key=lambda commit: commit.video_id)


def facts(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(out / one.file("masks").key) for one in newest(out)])


def files(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): file_sha256(path) for path in out.rglob("*") if path.is_file()}


def same_but_scores(got: pa.Table, expected: pa.Table) -> float:
    """Asserts that all but the scores is equal and the scores are near; how near."""
    assert got.schema.remove_metadata() == expected.schema.remove_metadata()
    rest = [name for name in got.schema.names if name not in SCORES]
    assert got.select(rest).equals(expected.select(rest))
    worst = 0.0
    for name in SCORES:
        a, b = (table[name].to_numpy().astype(float) for table in (got, expected))
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=name)
        worst = max(worst, float(np.nanmax(np.abs(a - b), initial=0)))
    assert worst <= FP16
    return worst


def test_heads_and_back_again_reproduce_the_scores(lake: Path, other: Path) -> None:
    before, labels = facts(lake), files(lake / "labels")
    commits = newest(lake)
    assert statuses(rescore(lake)) == ["unchanged"] * 3
    assert files(lake / "labels") == labels
    assert newest(lake) == commits
    found = rescore(lake, other)
    assert statuses(found) == ["rescored"] * 3
    assert {one.score_source for one in found.values()} == {"iou_stacked"}
    moved = facts(lake)
    assert np.nanmax(np.abs(moved["iou_stacked"].to_numpy() - before["iou_stacked"].to_numpy())) > 10 * FP16
    assert statuses(rescore(lake, other)) == ["unchanged"] * 3
    assert statuses(rescore(lake)) == ["rescored"] * 3
    assert same_but_scores(facts(lake), before) > 0  # they did come from the tokens
    assert [one.work_key for one in newest(lake)] == [one.work_key for one in commits]


def test_what_label_would_have_made_and_label_finds_its_work_done(
    night: Path, lake: Path, other: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = newest(lake)[0]
    (told,) = rescore(lake, other, [commit.video_id]).values()
    assert told.status == "rescored"
    video = commit.video_uri
    prompts = Path(video).with_suffix(".prompts.json")

    def label(out: Path) -> Any:
        wanted = settings(other, **{"policy.max_uncertainty": 0.05})  # as the videos of the night were labelled
        return label_video(video, prompts, str(out), wanted, drop="night", model=nano)

    label(tmp_path / "fresh")
    (made,) = newest(tmp_path / "fresh")
    rescored = newest(lake)[0]
    same_but_scores(
        *(pq.read_table(out / one.file("masks").key) for out, one in ((lake, rescored), (tmp_path / "fresh", made)))
    )
    assert (rescored.generation, rescored.work_key) == (2, made.work_key)
    monkeypatch.setattr(pipeline.label, "run_stages", lambda *_: pytest.fail("the model ran again"))
    again = label(lake)
    assert (again.status, again.generation) == ("re-decided", 2)  # makes the pictures of the review list, nothing else
    assert {"accept": again.accepted, "review": again.review, "hold": again.hold} == told.decisions
    assert label(lake).status == "unchanged"
    assert newest(lake)[0] == rescored


def test_each_video_keeps_its_policy(lake: Path, other: Path) -> None:
    store, commits = ObjectStore(lake), newest(lake)
    strict = load_settings(None, {"policy.name": "strict", "policy.max_uncertainty": 0.0}).policy
    derive(store, Ledger(store), commits[0].video_id, strict)
    found = rescore(lake, other)
    assert found[commits[0].video_id].policy_id == strict.policy_id
    assert len({one.policy_id for one in found.values()}) == 2
    assert found[commits[0].video_id].decisions["accept"] == 0
    for path in (lake / "labels").rglob("*.parquet"):
        about = read_metadata(pq.read_schema(path))
        assert about["policy_id"] == found[path.stem].policy_id
        assert about["generation"] == 2
    assert {one.evidence for one in found.values()} == {"uncertified: the threshold rests on no evidence yet"}


def older_release(out: Path) -> None:
    """Makes the output what a release wrote that kept no track features and did not say which prompts it had."""
    for path in (out / "commits").rglob("*.json"):
        body = json.loads(path.read_text())
        for file in body["files"]:
            table = pq.read_table(out / file["key"])
            about = {
                key: value
                for key, value in table.schema.metadata.items()
                if key not in (b"masksieve.prompts_sha256", b"masksieve.features")
            }
            table = table.drop_columns(["features"] if file["layer"] == "tokens" else [])
            pq.write_table(table.replace_schema_metadata(about), out / file["key"])
            file["sha256"], file["bytes"] = file_sha256(out / file["key"]), (out / file["key"]).stat().st_size
        path.write_text(json.dumps(body))


def test_tokens_without_features_are_scored_by_the_heads_alone(
    lake: Path, other: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    older_release(lake)
    before = facts(lake)
    assert run("rescore", lake, "--bank", other) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "3 rescored" in out
    assert "scored by iou_tracked" in out
    assert "heads alone: the tokens of 3 videos have no track features" in out
    after = facts(lake)
    assert after["iou_stacked"].null_count == len(after)
    assert "iou_stacked" not in after["score_source"].to_pylist()
    bank = load_bank(other)
    bank.stacker = None
    about = read_metadata(pq.read_schema(lake / newest(lake)[0].file("masks").key))
    assert about["heads_sha256"] == bank_sha256(bank)
    rest = [name for name in after.schema.names if name not in (*SCORES, "score_source")]
    assert after.select(rest).equals(before.select(rest))
    commits = newest(lake)
    assert statuses(rescore(lake, other)) == ["unchanged"] * 3
    assert newest(lake) == commits


def test_videos_that_cannot_be_rescored_are_told(
    lake: Path, other: Path, tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = newest(lake)
    path = lake / f"commits/{first.video_id}/000001.json"
    body = json.loads(path.read_text())
    body["files"] = [file for file in body["files"] if file["layer"] != "tokens"]
    path.write_text(json.dumps(body))
    damaged = lake / second.file("tokens").key
    damaged.write_bytes(damaged.read_bytes()[:-40] + b"x" * 4 + damaged.read_bytes()[-36:])
    assert run("rescore", lake, "--bank", other) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "1 rescored, 1 without tokens, 1 failed" in out
    assert f"{first.video_uri}: expected tokens" in out
    assert "label it again with --set output.tokens=true" in out
    assert len(newest(lake)[1].files) == 2
    assert newest(lake)[1].generation == 1
    assert run("rescore", lake, "--video", Path(first.video_uri).name) == 2


@pytest.mark.parametrize("change", [{"model_sha256": "0" * 64}, {"mask_token_offset": 0}])
def test_heads_that_do_not_fit_are_refused(
    lake: Path, other: Path, change: dict[str, Any], tmp_path: Path, run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bank = load_bank(other)
    bank.stacker = None
    bank = HeadBank(bank.names, bank.states(), dataclasses.replace(bank.card, **change))
    path, before = save_bank(bank, tmp_path / "odd.safetensors"), files(lake)
    assert run("rescore", lake, "--bank", path) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "3 refused: the heads do not fit" in out
    assert ("heads for sam2_nano" if "model_sha256" in change else "mask_token_offset 1") in out
    assert files(lake) == before


def test_mistakes_of_the_call(lake: Path, tmp_path: Path, run: Callable[..., int], capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    for words, told in (
        ([lake, "--bank", tmp_path / "none.safetensors"], "expected a bank of heads"),
        ([lake, "--drop", "nigth"], "did you mean 'night'?"),
        ([lake, "--video", "exitt.mp4"], "did you mean exit.mp4?"),
        ([tmp_path / "empty"], "expected committed videos"),
    ):
        assert run("rescore", *words) == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_a_chosen_video_alone(lake: Path, other: Path) -> None:
    ledger, commits = Ledger(ObjectStore(lake)), newest(lake)
    one = commits[1]
    for word in (one.video_id[:9], one.video_uri, Path(one.video_uri).name):
        assert chosen_videos(ledger, ["night"], [word]) == [one.video_id]
    with pytest.raises(SettingsError, match="a drop that"):
        chosen_videos(ledger, ["noon"])


def test_killed_anywhere_the_same_call_ends_it(
    lake: Path, other: Path, tmp_path: Path, killed_after: Callable[[int], AbstractContextManager[None]]
) -> None:
    """Per video: facts, commit, review list, labels. After each of these writes a reader sees whole generations."""
    video_id = newest(lake)[0].video_id
    whole = Path(shutil.copytree(lake, tmp_path / "whole"))
    rescore(whole, other, [video_id])
    expected = files(whole / "labels")
    for writes in range(4):
        out = Path(shutil.copytree(lake, tmp_path / f"killed{writes}"))
        with killed_after(writes):
            rescore(out, other, [video_id])
        (commit,) = (one for one in newest(out) if one.video_id == video_id)
        assert commit.generation == (1 if writes < 2 else 2)
        labels = next((out / "labels").rglob(f"{video_id}.parquet"))
        assert read_metadata(pq.read_schema(labels))["generation"] == 1
        (told,) = rescore(out, other, [video_id]).values()
        assert told.status == ("rescored" if writes < 2 else "unchanged")
        assert files(out / "labels") == expected
        assert len(list((out / "masks").rglob(f"{video_id}*"))) == (3 if writes == 1 else 2)  # one orphan, for gc


def test_a_rival_that_commits_meanwhile_is_rescored_in_its_turn(
    lake: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody labels the video with other prompts while we score: its facts count, with our scores."""
    before = newest(lake)[0]
    commit, came = Ledger.commit, list[Commit]()

    def racing(self: Ledger, video_id: str, **given: Any) -> Commit:
        if not came:
            came.append(commit(self, video_id, **{**given, "work_key": "f" * 64, "files": before.files, "run_id": "r"}))
        return commit(self, video_id, **given)

    monkeypatch.setattr(Ledger, "commit", racing)
    (told,) = rescore(lake, other, [before.video_id]).values()
    assert (told.status, told.generation) == ("rescored", 3)
    assert newest(lake)[0].parent == came[0].generation == 2
    assert len(list((lake / "masks").rglob(f"{before.video_id}*"))) == 2  # what lost the race is gone
    labels = next((lake / "labels").rglob(f"{before.video_id}.parquet"))
    assert read_metadata(pq.read_schema(labels))["generation"] == 3

    def always(self: Ledger, video_id: str, **given: Any) -> Commit:
        raise CommitConflict("a free generation", "a rival", "run again")

    monkeypatch.setattr(Ledger, "commit", always)
    (told,) = rescore(lake, None, [before.video_id]).values()
    assert told.status == "failed"
    assert "3 rivals in a row" in str(told.error)


def test_tokens_outlive_the_generation_that_wrote_them(lake: Path, other: Path) -> None:
    """gc takes the old scores; the tokens, which both generations name, stay and can be rescored again."""
    old = {one.file("masks").key for one in newest(lake)}
    rescore(lake, other)
    store = ObjectStore(lake)
    sweep = Sweep(store, Ledger(store), settings().drops, older_than_seconds=0, superseded=True)
    sweep.remove(sweep.look().orphans)
    assert not any((lake / key).exists() for key in old)
    assert all((lake / file.key).exists() for one in newest(lake) for file in one.files)
    assert statuses(rescore(lake)) == ["rescored"] * 3


def test_in_a_bucket(lake: Path, other: Path, moto_s3: S3Server) -> None:
    url, storage = moto_s3.new_bucket(), moto_s3.settings()
    store = ObjectStore(f"{url}/out", storage)
    for key in files(lake):
        store.put_atomic(key, (lake / key).read_bytes())
    ledger = Ledger(store)
    found = list(rescore_all(store, chosen_videos(ledger, ["night"]), settings(other)))
    assert [one.status for one in found] == ["rescored"] * 3
    rescore(lake, other)
    for commit in newest(lake):
        there = ledger.newest(commit.video_id)
        assert there is not None
        assert there.file("masks").sha256 == commit.file("masks").sha256
