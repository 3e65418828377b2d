"""The README's tree is the tree: every module with the first line of its docstring; and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def _first_line(path: Path) -> str:
    return path.read_text().split('"""')[1].splitlines()[0].strip()


def test_every_module_is_in_the_tree_with_its_own_first_line() -> None:
    lines = {tuple(line.split(None, 1)) for line in README.splitlines() if line.startswith("  ")}
    missing = [
        f"{path.relative_to(ROOT)}: {_first_line(path)}"
        for package in ("usam", "pipeline", "flows")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "__init__.py" and (path.name, _first_line(path)) not in lines
    ]
    assert missing == []


def test_the_tree_lists_no_module_that_is_gone() -> None:
    there = {path.name for package in ("usam", "pipeline", "flows") for path in (ROOT / package).rglob("*.py")}
    listed = {match[1] for match in re.finditer(r"^  (\w+\.py)  ", README, re.MULTILINE)}
    assert listed - there == set()


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
