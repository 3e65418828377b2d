"""Packaging: a wheel holds everything, installs into an empty environment, and runs the demo outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = str(ROOT / "constraints.txt")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a command that must succeed; its own output is the message when it does not."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env |= {"PIP_CONSTRAINT": CONSTRAINTS, "PIP_BUILD_CONSTRAINT": CONSTRAINTS, **environment}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} exited {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", out, ROOT, cwd=out)
    (built,) = out.glob("masksieve-*.whl")
    return built


def test_the_wheel_holds_code_configs_and_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = run("git", "ls-files", "usam", "pipeline", "flows", cwd=ROOT).split()
    configs = [path.removeprefix("configs/") for path in run("git", "ls-files", "configs", cwd=ROOT).split()]
    there = [path for path in tracked if (ROOT / path).is_file()]
    assert [path for path in there if path not in names] == []
    assert [path for path in configs if f"pipeline/_configs/{path}" not in names] == []
    assert [name for name in names if "__pycache__" in name or name.startswith(("tests/", "configs/"))] == []
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    text = archive.read(metadata).decode()
    for line in (
        "Requires-Python: >=3.11",
        "License-Expression: Apache-2.0",
        "Requires-Dist: sam2==1.1.0",
        "Requires-Dist: fastapi<0.151,>=0.139",
        "Requires-Dist: prefect<3.9,>=3.8.8",
    ):
        assert line in text


def test_every_constraint_allows_what_the_project_asks_for() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    lines = [line.split("#")[0].strip() for line in Path(CONSTRAINTS).read_text().splitlines()]
    for pinned in (Requirement(line) for line in lines if line):
        (pin,) = pinned.specifier
        assert pin.version in wanted.get(pinned.name, pinned.specifier)


def test_a_wheel_runs_the_demo_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv, away = tmp_path / "venv", tmp_path / "elsewhere"
    away.mkdir()
    run(sys.executable, "-m", "venv", venv, cwd=away)
    run(venv / "bin" / "python", "-m", "pip", "install", "-qq", wheel, cwd=away)

    where = run(venv / "bin" / "python", "-c", "import pipeline, usam, flows; print(pipeline.__file__)", cwd=away)
    assert Path(where.strip()).is_relative_to(venv)
    assert "masksieve" in run(venv / "bin" / "masksieve", "--help", cwd=away)

    run(venv / "bin" / "masksieve", "demo", "--out", away / "out", cwd=away, MASKSIEVE_CACHE=str(away / "cache"))
    made = [path for path in (away / "out").rglob("*") if path.is_file()]
    assert {".parquet", ".mp4", ".png"} <= {path.suffix for path in made}
