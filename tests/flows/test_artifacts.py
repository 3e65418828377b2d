"""What the server shows can be read: a table no wider than it has to be, what failed above it, no key of a store."""

from __future__ import annotations

from typing import Any

import pytest

from flows import artifacts
from flows.rows import line


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the server would be given."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda **given: seen.update(given))
    return seen


def test_a_table_has_no_empty_columns_and_says_first_what_went_wrong(shown: dict[str, Any]) -> None:
    good = line("a.mp4", "labelled", "") | {"frames": 0}
    artifacts.table([good, line("`b`.mp4", "quarantined", "no\n`video`")], "label", "Labels")
    assert list(shown["table"][0]) == ["video", "status", "frames", "certified", "error"]
    assert shown["description"] == "Labels\n\n- `'b'.mp4` quarantined: no 'video'"
    artifacts.table([good], "label", "Labels")
    assert list(shown["table"][0]) == ["video", "status", "frames", "certified"]
    assert shown["description"] == "Labels"
    artifacts.table([], "label", "Labels")
    assert shown["table"] == []


def test_many_failures_are_counted(shown: dict[str, Any]) -> None:
    artifacts.table([line(f"{n}.mp4", "failed", "bad") for n in range(25)], "label", "Labels")
    assert shown["description"].count("bad") == artifacts.LISTED_REASONS
    assert shown["description"].endswith("and 5 more, see the table")
    assert len(shown["table"]) == 25
