"""Why a mask is asked about, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.review.items import Item
from pipeline.review.words import ask_candidates, headline, uncertainty_words

ITEM = Item(
    "r1", "a" * 64, "/in/a.mp4", 1, "day", 1, "cup", "review", 5, 3, 9, 7, 100, 160, 12.0, 400, 0.3,
    ("uncertainty 0.30 > 0.25",), "add_click", 1.0,
    {"task_gap": 0.01, "prompt_gap": 0.02, "model_gap": 0.0, "visibility": "visible", "object_score": 8.0},
)  # fmt: skip


def item(**sources: Any) -> Item:
    return replace(ITEM, sources={**ITEM.sources, **sources})


def test_a_wide_task_gap_asks_for_the_candidates() -> None:
    one = item(task_gap=0.2)
    assert headline(one) == "probably fine; unsure about the part: 3 candidates"
    assert ask_candidates(one)
    assert not ask_candidates(ITEM)
    assert not ask_candidates(item(task_gap=None))


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ({"model_gap": 0.3}, "a larger model"),
        ({"prompt_gap": 0.3}, "one more click"),
        ({"temporal_iou": 0.12}, "12% in common"),
        ({"area_change": 0.75}, "suddenly larger: 4.0 times"),
        ({"area_change": -0.5001}, "suddenly smaller: 2.0 times"),
        ({"area_change": -1.0}, "suddenly smaller: 100.0 times"),
        ({"visibility": "absent"}, "not there"),
        ({"object_score": 0.5}, "there at all"),
        ({"stability": 0.2}, "edge"),
    ],
)
def test_each_source_has_its_words(sources: dict[str, Any], said: str) -> None:
    assert said in uncertainty_words(item(**sources))[0]


def test_what_weighs_most_comes_first() -> None:
    words = uncertainty_words(replace(item(task_gap=0.2, model_gap=0.4), reasons=("across a scene cut",)))
    assert ["scene cut" in words[0], "outline" in words[1], "part" in words[2]] == [True] * 3


def test_words_do_not_tell_an_audit() -> None:
    """The same mask is spoken of in the same words, whatever it was drawn for."""
    sure = replace(item(task_gap=0.2), uncertainty=0.1)
    audit = replace(sure, kind="audit", reasons=("audit",), review_probability=0.1)
    assert (headline(audit), uncertainty_words(audit)) == (headline(sure), uncertainty_words(sure))
    assert "audit" not in " ".join(uncertainty_words(replace(audit, sources={})))


def test_nothing_known_is_said_too() -> None:
    bare = replace(ITEM, sources={}, uncertainty=None, reasons=("no score",))
    assert headline(bare) == "not scored; the model gave no score"
    assert uncertainty_words(replace(ITEM, sources={})) == ["nothing in particular stands out"]
