"""`masksieve drops`: what a person sees of a plan, how the call ends, and that the command line stays light."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

import flows.cli
from pipeline.settings import DropSettings
from pipeline.status import output_status
from pipeline.storage.objects import ObjectStore


@pytest.fixture
def drop(tmp_path: Path) -> str:
    folder = tmp_path / "night"
    folder.mkdir()
    for name in ("a.mp4", "a.prompts.json", "no prompts.mp4", "odd [bold]\n.mp4"):
        (folder / name).write_bytes(name.encode())
    return str(folder)


@pytest.fixture(autouse=True)
def no_server() -> Iterator[None]:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        flows.cli.main(["drops", *words])
    shown = capsys.readouterr()
    return int(end.value.code or 0), shown.out, shown.err


READY = ("--set", "drops.settle_seconds=0")


def test_a_dry_run_shows_each_kind_with_its_names_and_what_to_do(
    drop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, drop, "--out", str(tmp_path / "out"), "--dry-run", *READY)
    assert code == 0
    lines = {line.split()[1]: line for line in out.splitlines() if line.split() and line.split()[0].isdigit()}
    assert "a.mp4" in lines["wanted"]
    assert "no prompts.mp4" in lines["needs"]
    assert "put STEM.prompts.json beside each" in out.replace("  ", " ")
    assert "odd [bold]\\n.mp4" in lines["refused"]
    assert not (tmp_path / "out").exists()
    code, out, _ = call(capsys, drop, "--out", str(tmp_path / "out"), "--dry-run")
    assert "settling" in out


def test_json_is_the_plan(drop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, drop, "--out", str(tmp_path), "--drop", "n", "--dry-run", "--json", *READY)
    found = json.loads(out)
    assert (code, found["drop"], found["counts"]["wanted"]) == (0, "n", 1)
    assert found["needs_prompts"] == [f"{drop}/no prompts.mp4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/nowhere/at/all", "--dry-run"], "no folder /nowhere/at/all"),
        (["DROP", "--set", "model.name=sam2_nan"], "sam2_nano"),
        (["DROP", "--set", "storage.secret_access_key=hush"], "overrides without secrets"),
        (["DROP", "--submit", *READY], "a Prefect server"),
        (["DROP", "--drop", " "], "a name of the drop"),
    ],
)
def test_a_wrong_call_is_one_line_and_code_2(
    drop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    words = [drop if word == "DROP" else word for word in words]
    code, _, err = call(capsys, *words, "--out", str(tmp_path / "out"))
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert "hush" not in err


def test_nothing_wanted_needs_no_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*words: Any) -> None:
        raise AssertionError("nothing to do")

    monkeypatch.setattr(flows.cli, "_do", never)
    (tmp_path / "empty").mkdir()
    code, out, _ = call(capsys, str(tmp_path / "empty"), "--out", str(tmp_path / "out"))
    assert (code, out.splitlines()[-1]) == (0, "no videos")


def test_a_plan_without_work_is_written_down_for_status(
    drop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(drop, "a.prompts.json").unlink()
    code, _, _ = call(capsys, drop, "--out", str(tmp_path / "out"), *READY)
    (one,) = output_status(ObjectStore(tmp_path / "out"), DropSettings()).drops
    assert (code, one.needs_prompts, one.waiting) == (0, 2, 0)


def test_a_server_that_does_not_answer_is_told(drop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        code, _, err = call(capsys, drop, "--out", str(tmp_path / "out"), *READY)
    assert code == 1
    assert "no answer; see that it runs, or work here with --here" in err
