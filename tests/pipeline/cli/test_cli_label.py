"""`masksieve label` as a person or a script meets it: exit codes, one line per mistake, the others still done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pipeline.label
import pipeline.models
from pipeline.cli import main
from pipeline.cli.label import failed_report
from pipeline.errors import PromptError
from pipeline.label import Progress
from pipeline.report import VideoReport
from pipeline.settings import Settings

from .conftest import Run


def _report(video: str, **changes: Any) -> VideoReport:
    values: dict[str, Any] = {
        **vars(failed_report(video, "")), "status": "labelled", "video_id": "ab" * 32, "frames": 10, "objects": 2,
        "rows": 20, "accepted": 15, "review": 5, "absent": 4, "wall_seconds": 2.0, "frames_per_second": 5.0,
        "score_source": "iou_tracked", "error": None,
    }  # fmt: skip
    return VideoReport(**{**values, **changes})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for the job itself: a video named bad*.mp4 is refused, crash*.mp4 breaks, the others are labelled."""
    seen: list[dict[str, Any]] = []

    def job(video: str, prompts: object, out: str, settings: Settings, **more: Any) -> VideoReport:
        seen.append({"video": Path(video).name, "prompts": prompts, "out": out, "settings": settings, **more})
        more["progress"](Progress("propagate", 5, 10))
        if Path(video).name.startswith("bad"):
            raise PromptError("a foreground point", "none", "add one")
        if Path(video).name.startswith("crash"):
            raise RuntimeError("boom")
        if Path(video).name.startswith("stop"):
            raise KeyboardInterrupt
        return _report(video)

    monkeypatch.setattr(pipeline.label, "label_video", job)
    monkeypatch.setattr(pipeline.models, "load_model", lambda name, **more: name)
    return seen


def _videos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / f"{name}.mp4").write_bytes(b"x")
        (folder / f"{name}.prompts.json").write_text("{}")
    return folder


def test_all_done_is_exit_code_0_with_a_summary(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("label", _videos(tmp_path, "a", "b"), "--out", "labels") == 0
    out = capsys.readouterr().out
    assert [call["video"] for call in calls] == ["a.mp4", "b.mp4"]
    assert calls[0]["prompts"] == str(tmp_path / "a.prompts.json")
    for word in ("75.0%", "25.0%", "20.0%", "a.mp4", "2 labelled", "uncertified", "1 - iou_tracked"):
        assert word in out


def test_one_failure_is_told_and_the_others_are_done(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("label", tmp_path / "nope.mp4", _videos(tmp_path, "bad", "crash", "good")) == 1
    captured = capsys.readouterr()
    assert [call["video"] for call in calls] == ["bad.mp4", "crash.mp4", "good.mp4"]
    assert "expected a foreground point, got none; add one" in captured.out
    assert "RuntimeError: boom" in captured.out
    assert "nothing at" in captured.out
    assert "1 labelled, 3 failed" in captured.out
    assert "Traceback" not in captured.out + captured.err


def test_json_is_all_that_stands_on_stdout(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("label", _videos(tmp_path, "bad", "good"), "--json") == 1
    data = json.loads(capsys.readouterr().out)
    assert [video["status"] for video in data["videos"]] == ["failed", "labelled"]
    assert data["totals"]["accepted_share"] == 0.75
    assert data["totals"]["masks"] == 16
    assert data["interrupted"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "polcy.max_uncertainty=0.1"], "did you mean 'policy'?"),
        (["--set", "policy.max_uncertainty"], "expected --set key=value"),
        (["--model", "sam2_nanno"], "did you mean 'sam2_nano'?"),
        (["--config", "no-such.yaml"], "no file no-such.yaml"),
        (["--out", "nosuch://host/labels"], "expected a folder, s3://bucket/prefix, or another address"),
        (["--prompts", "no-such.json"], "nothing; check the path"),
        (["--nonsense"], "No such option"),
    ],
)
def test_a_wrong_call_is_exit_code_2_and_one_line(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, words: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run("label", _videos(tmp_path, "a"), *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert calls == []


def test_a_call_whose_every_input_leads_nowhere_is_wrong(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("label", tmp_path / "nope.mp4", tmp_path / "neither") == 2
    assert capsys.readouterr().out.count("nothing at") == 2
    file = _videos(tmp_path, "a", "b") / "a.prompts.json"
    assert run("label", tmp_path, "--prompts", file) == 2
    assert calls == []


def test_settings_reach_the_job(run: Run, calls: list[dict[str, Any]], tmp_path: Path) -> None:
    words = ("--set", "policy.max_uncertainty=0.1", "--set", "decode.decoder=pyav", "--drop", "monday")
    assert run("label", _videos(tmp_path, "a"), *words) == 0
    settings = calls[0]["settings"]
    assert (settings.policy.max_uncertainty, settings.decode.decoder, calls[0]["drop"]) == (0.1, "pyav", "monday")


def test_an_interrupted_run_tells_what_is_complete(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("label", _videos(tmp_path, "good", "stop", "tail")) == 130
    captured = capsys.readouterr()
    assert [call["video"] for call in calls] == ["good.mp4", "stop.mp4"]
    assert "good.mp4" in captured.out
    assert "interrupted" in captured.err
    assert "the same command goes on with the running video, from its last checkpoint" in captured.err
    assert run("label", tmp_path, "--json") == 130
    assert json.loads(capsys.readouterr().out)["interrupted"] is True


def test_one_of_a_thing_is_not_told_in_the_plural(
    run: Run, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(pipeline.label, "label_video", lambda video, *_, **__: _report(video, frames=1, objects=1))
    assert run("label", _videos(tmp_path, "a")) == 0
    assert "1 frame, 1 object," in capsys.readouterr().err


def test_another_policy_over_the_same_facts_is_told_as_such(
    run: Run, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(pipeline.label, "label_video", lambda video, *_, **__: _report(video, status="re-decided"))
    assert run("label", _videos(tmp_path, "a", "b")) == 0
    captured = capsys.readouterr()
    assert "2 re-decided" in captured.out
    assert "masks as before" in captured.err


def test_an_unforeseen_error_hints_at_debug(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*_args: object, **_more: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("pipeline.drops.find_videos", crash)
    assert run("label", _videos(tmp_path, "a")) == 1
    captured = capsys.readouterr()
    assert "ZeroDivisionError: division by zero" in captured.err
    assert "--debug" in captured.err
    with pytest.raises(ZeroDivisionError):
        main(["label", str(tmp_path), "--debug"])


def test_two_names_of_the_same_bytes_are_told(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("label", _videos(tmp_path, "a", "b"), "--out", "labels") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "same bytes" in out
    assert "b.mp4 are one video" in out


@pytest.mark.parametrize("words", [("", "--out", "x"), ("v", "--out", ""), ("v", "--model", " ")])
def test_an_empty_word_is_refused(
    run: Run, calls: list[dict[str, Any]], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("label", *words) == 2
    assert "an empty word" in capsys.readouterr().err
    assert calls == []


def test_a_certificate_that_the_output_does_not_have_is_told_before_the_work(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--out", tmp_path / "out", "--set", "policy.certificate=0123456789abcdef")
    assert run("label", _videos(tmp_path, "a"), *words) == 2
    assert "expected a certificate 0123456789abcdef" in capsys.readouterr().err
    assert calls == []


@pytest.mark.parametrize("words", [("--auto-prompts",), ("--set", "prompts.on_missing=auto")])
def test_videos_without_prompts_can_be_asked_for(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, words: tuple[str, ...]
) -> None:
    folder = _videos(tmp_path, "a", "b")
    (folder / "b.prompts.json").unlink()
    assert run("label", folder, "--out", tmp_path / "out", *words) == 0
    assert [(call["video"], call["prompts"] is None) for call in calls] == [("a.mp4", False), ("b.mp4", True)]
    assert {call["settings"].prompts.on_missing for call in calls} == {"auto"}
    calls.clear()
    elsewhere = tmp_path / "prompts"
    elsewhere.mkdir()
    assert run("label", folder / "b.mp4", "--prompts", elsewhere, "--out", tmp_path / "out", *words) == 0
    assert [call["prompts"] for call in calls] == [None]
