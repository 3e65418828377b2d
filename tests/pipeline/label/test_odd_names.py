"""Whoever uploads names the files: whatever they are called, nothing is written beside the output, and a refusal is one
line."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

import pipeline.cli
import pipeline.cli.label
from pipeline.models import LoadedModel
from pipeline.names import shown
from pipeline.plan import plan_drop
from pipeline.settings import load_settings
from pipeline.storage.objects import ObjectStore
from pipeline.work import WorkLog

pytestmark = pytest.mark.slow

E = "é"
ODD = [
    "a?b#c.mp4", "%2e%2e.mp4", "a%00b.mp4", "=1+1.mp4", "-n.mp4", "a .mp4",
    f"{unicodedata.normalize('NFC', E)}.mp4", f"{unicodedata.normalize('NFD', E)}.mp4",
]  # fmt: skip
IN_FOLDERS_ONLY = [
    "--help.mp4", "~root.mp4", "~.mp4", "concat:a.mp4", "$(touch x).mp4", "[bold]x.mp4", "{x}.mp4", "..mp4.mp4",
    "a\nb.mp4", "a\\b.mp4", "x" * 251 + ".mp4", os.fsdecode(b"\xff.mp4"),
]  # fmt: skip
FAILED_IN_FOLDERS = ["a\nb.mp4", "x" * 251 + ".mp4", os.fsdecode(b"\xff.mp4")]
IN_BUCKETS_ONLY = ["x" * 300 + ".mp4", "x" * 900 + "/a.mp4", "C:a.mp4"]
REFUSED = ["../../etc/x.mp4", "/etc/x.mp4", "a/../../b.mp4", "a//b.mp4", "./c.mp4", "a\nb.mp4", "a\0b.mp4", "a\\b.mp4"]


def files(root: Path) -> set[str]:
    return {os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root) for name in names}


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything that is written lies below `tmp_path`: what is not in the output or in scratch is astray."""
    folder = tmp_path / "a" / "scratch"
    folder.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("MASKSIEVE_CACHE", str(tmp_path / "a" / "cache"))
    return folder


def call(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """`masksieve label`, in which a failure is one line."""
    with pytest.raises(SystemExit):
        pipeline.cli.main(
            ["label", *words, "--json", "--set", "output.review_frames=false", "--set", "model.device=cpu"]
        )
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert shown.out, shown.err
    reports: list[dict[str, Any]] = json.loads(shown.out)["videos"]
    for report in reports:
        assert "\n" not in (report["error"] or "")
        assert "not foreseen" not in (report["error"] or "")
    return reports


def test_in_a_folder_all_are_labelled(
    drop: Path, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    night = tmp_path / "a" / "b" / "night"
    night.mkdir(parents=True)
    for name in (*ODD, *IN_FOLDERS_ONLY):
        shutil.copy(drop / "clip.mp4", night / name)
    shutil.copytree(drop, tmp_path / "a" / "prompts")
    prompts = tmp_path / "a" / "prompts" / "clip.prompts.json"
    for name in (*ODD, *IN_FOLDERS_ONLY):
        if len(name) < 240:  # with the suffix of prompts it is too long for a folder
            shutil.copy(prompts, night / f"{name.removesuffix('.mp4')}.prompts.json")
    before = files(tmp_path)
    monkeypatch.chdir(night)  # names stand alone then
    reports = call(capsys, ".", "--out", str(tmp_path / "a" / "out"))
    status = {report["video"].removeprefix("./"): report["status"] for report in reports}
    assert {name for name, one in status.items() if one == "failed"} == {*map(shown, FAILED_IN_FOLDERS)}
    assert len(reports) == len(ODD) + len(IN_FOLDERS_ONLY)
    astray = {name for name in files(tmp_path) - before if not name.startswith(("a/out/", "a/cache/"))}
    assert astray == set()
    assert list(scratch.iterdir()) == []


def test_in_a_bucket_all_are_labelled_or_refused(
    drop: Path, moto_s3: Any, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from moto.s3.models import s3_backends

    bucket, keys = moto_s3.new_bucket(), [*ODD, *IN_BUCKETS_ONLY, *REFUSED]
    backend = s3_backends["123456789012"]["aws"]  # an HTTP client would tidy the names up
    for key in keys:
        for name, source in ((key, "clip.mp4"), (f"{key.removesuffix('.mp4')}.prompts.json", "clip.prompts.json")):
            backend.put_object(bucket.removeprefix("s3://"), f"in/{name}", (drop / source).read_bytes())
    storage = {"access_key_id": moto_s3.access_key_id, "secret_access_key": moto_s3.secret_access_key}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"storage": {**storage, "endpoint_url": moto_s3.endpoint_url, "region": "us-east-1"}}))
    before = files(tmp_path)
    reports = call(capsys, f"{bucket}/in", "--out", str(tmp_path / "a" / "out"), "--config", str(config))
    status = {report["video"].removeprefix(f"{bucket}/in/"): report["status"] for report in reports}
    assert {name for name, one in status.items() if one == "failed"} == {*map(shown, REFUSED)}
    astray = {name for name in files(tmp_path) - before if not name.startswith(("a/out/", "a/cache/"))}
    assert astray == set()
    assert list(scratch.iterdir()) == []

    settings = load_settings(str(config), {"drops.settle_seconds": 0})
    plan = plan_drop(ObjectStore(f"{bucket}/in", settings.storage), ObjectStore(tmp_path / "a" / "out"), settings)
    assert {item.video.removeprefix(f"{bucket}/in/") for item in plan.wanted} == {*ODD, *IN_BUCKETS_ONLY}
    assert len(plan.buckets["refused"]) == len(REFUSED)


@pytest.mark.parametrize("name", ["..", "../../x", "a\nb", "é" * 300])
def test_the_name_of_a_drop_is_one_folder_of_the_output(
    name: str, drop: Path, nano: LoadedModel, tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(tmp_path)
    reports = call(capsys, str(drop / "clip.mp4"), "--out", str(tmp_path / "a" / "out"), "--drop", name)
    found = {path.split("/")[3] for path in files(tmp_path) - before if path.startswith("a/out/labels/")}
    assert (len(found), reports[0]["status"]) in ((1, "labelled"), (0, "failed"))
    assert {path for path in files(tmp_path) - before if not path.startswith(("a/out/", "a/cache/"))} == set()
    assert WorkLog(ObjectStore(tmp_path / "a" / "out"), load_settings().drops).standings() == {}
