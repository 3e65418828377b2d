"""`masksieve retune`: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pipeline.retune
from pipeline.derive import Derived

from .conftest import Run

Said = pytest.CaptureFixture[str]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text("max_uncertainty: 0.9\nname: loose\n")
    return path


def test_it_shows_what_would_change_does_it_and_goes_back(run: Run, lake: Path, policy: Path, capsys: Said) -> None:
    assert run("retune", lake, "--policy", policy, "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    moved = sum(one["masks"] for one in told["moves"] if one["before"] == "review" and one["after"] == "accept")
    assert (told["videos"], moved > 0) == (3, True)
    assert run("retune", lake, "--policy", policy, "--dry-run") == 0
    page = capsys.readouterr().out
    assert [f"{moved:,}"] == [
        line.split()[-1] for line in page.splitlines() if line.split()[:3] == ["all", "review", "accept"]
    ]
    assert f"{told['changed']:,} of {told['masks']:,} masks in 3 videos would change side; nothing was written" in page
    assert not (lake / "retunes").exists()

    assert run("retune", lake, "--policy", policy) == 0
    page = capsys.readouterr().out
    for words in ("3 videos: 3 written", "accept (", "uncertified: the threshold rests", "retune 1; --undo goes back"):
        assert words in page
    assert run("retune", lake, "--policy", policy, "--drop", "night", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["unchanged"], again["retune"]) == (3, None)
    assert again["evidence"] == {"uncertified: the threshold rests on no evidence yet": 3}
    assert run("retune", lake, "--undo", "--json") == 0
    assert json.loads(capsys.readouterr().out)["written"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--undo"], "a retune to undo"),
        ([], "--policy FILE, or --undo"),
        (["--undo", "--drop", "night"], "--undo alone"),
        (["--policy", "none.yaml"], "none.yaml"),
        (["--policy", "POLICY", "--drop", "nigt"], "did you mean 'night'"),
        (["--policy", "POLICY", "--since", "tomorrow"], "--since DATE"),
        (["--policy", "POLICY", "--since", "2026-02-02", "--until", "2026-02-01"], "--until after --since"),
    ],
)
def test_a_mistake_in_the_call_is_one_line(
    run: Run, lake: Path, policy: Path, capsys: Said, words: list[str], message: str
) -> None:
    assert run("retune", lake, *(str(policy) if word == "POLICY" else word for word in words)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_uncertainti: 0.2", "did you mean 'max_uncertainty'"),
        ("{max_uncertainty: 0.5, hold_above_uncertainty: 0.2}", "crossed thresholds"),
        ("certificate: 0123456789abcdef", "a certificate 0123456789abcdef"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_mistake_in_the_policy_changes_nothing(
    run: Run, lake: Path, policy: Path, capsys: Said, text: str, message: str, more: list[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in lake.rglob("*")}
    policy.write_text(text)
    assert run("retune", lake, "--policy", policy, *more) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in lake.rglob("*")} == before


def test_one_that_fails_is_named_and_the_call_failed(run: Run, lake: Path, policy: Path, capsys: Said) -> None:
    damaged = next(lake.glob("masks/*/*.parquet"))
    damaged.write_bytes(b"no facts")
    assert run("retune", lake, "--policy", policy, "--dry-run") == 1
    assert run("retune", lake, "--policy", policy) == 1
    page = capsys.readouterr().out
    assert "3 videos: 2 written, 1 failed" in page
    assert f"failed {damaged.name[:12]}: expected facts with SHA-256" in page


def test_an_interrupt_says_how_to_go_on(
    run: Run, lake: Path, policy: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    derive, calls = pipeline.retune.derive, []

    def interrupted(*given: Any, **more: Any) -> Derived:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return derive(*given, **more)

    monkeypatch.setattr(pipeline.retune, "derive", interrupted)
    assert run("retune", lake, "--policy", policy) == 130
    assert "the same command goes on, --undo goes back" in capsys.readouterr().err
    assert run("retune", lake, "--policy", policy) == 0
    assert "retune 1" in capsys.readouterr().out
