"""The other commands: doctor, models, show, version, and how fast the command line starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import doctor
from pipeline.cli import main
from pipeline.doctor import Check


def _run(*words: object) -> int:
    with pytest.raises(SystemExit) as exited:
        main([str(word) for word in words])
    return exited.value.code if isinstance(exited.value.code, int) else int(exited.value.code is not None)


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("broken", 1)])
def test_doctor_fails_only_when_something_needed_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: doctor.State, code: int
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda settings, store: [Check("torch", state, "found [x]", "do this")])
    assert _run("doctor") == code
    out = capsys.readouterr().out
    assert "found [x]" in out
    assert "do this" in out
    assert _run("doctor", "--json") == code
    assert json.loads(capsys.readouterr().out)["ok"] is (code == 0)


def test_models_are_listed_with_their_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("models", "list", "--cache-dir", tmp_path, "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["sam2_nano"]["source"] == "embedded"
    assert rows["sam2.1_hiera_tiny"]["status"] == "missing"
    assert _run("models", "list", "--cache-dir", tmp_path) == 0
    assert "sam2.1_hiera_large" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("models", "verify", "sam2.1_hiera_tiny", "--cache-dir", "."), 1),  # a right call: the file is not there yet
        (("models", "verify", "sam2_nanno"), 2),
        (("models", "fetch", "nope"), 2),
        (("usam", "import", "nowhere", "--model", "sam2_nano"), 2),
        (("usam", "import", ".", "--model", "sam2_nanno"), 2),
        (("usam", "fit", "nowhere", "--model", "sam2_nano"), 2),
        (("usam", "fit", ".", "--model", "sam2_nano"), 1),
        (("show", "nope.mp4", "--labels", "."), 2),
        (("show", "nope.mp4", "--labels", "nowhere"), 2),
        (("demo", "--set", "polcy.max_uncertainty=1"), 2),
        (("doctor", "--config", "nowhere.yaml"), 2),
    ],
)
def test_a_wrong_call_is_2_and_failed_work_is_1_and_each_is_one_line(
    words: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert _run(*words) == code
    err = capsys.readouterr().err
    assert "expected" in err
    assert err.count("\n") == 1


def test_show_says_when_there_is_nothing_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"x")
    (tmp_path / "labels").mkdir()
    assert _run("show", video, tmp_path / "nope.mp4", "--labels", tmp_path / "labels", "--out", tmp_path / "show") == 1
    err = capsys.readouterr().err.splitlines()
    assert "label it first" in err[0]
    assert "nope.mp4" in err[1]
    assert not (tmp_path / "show").exists()


def test_version_names_what_decides_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("version") == 0
    assert "sam2 1.1.0" in capsys.readouterr().out


def test_help_starts_without_the_heavy_packages() -> None:
    code = (
        "import sys\nfrom pipeline.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'decord', 'pandas', 'av', 'pyarrow', 'matplotlib', 'prefect'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "label" in done.stdout
