"""Layers: usam <- pipeline <- flows; who may import what, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "usam": {"pipeline", "flows", "prefect", "fsspec", "s3fs", "torchvision", "cv2"},
    "pipeline": {"flows", "prefect", "torchvision", "cv2"},
    "flows": {"torchvision", "cv2"},
}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every import of a file, those inside functions too."""
    package = path.relative_to(ROOT).parts[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, package if node.level else (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_nothing_imports_upwards(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in imports(path)
        if name in FORBIDDEN[package]
    ]
    assert wrong == []


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_every_file_says_its_one_idea_first(package: str) -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / package).rglob("*.py"))
        if not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
    ]
    assert silent == []


@pytest.mark.parametrize(
    "module",
    [
        "usam",
        "pipeline",
        "flows",
        "pipeline.errors",
        "pipeline.checkpoints",
        "pipeline.models",
        "pipeline.plan",
        "flows.cli",
    ],
)
def test_importing_the_front_does_not_load_what_is_heavy(module: str) -> None:
    heavy = ("torch", "sam2", "decord", "pandas", "prefect")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
