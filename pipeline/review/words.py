"""Why a mask is asked about, in words that a person can act on; an audited mask is spoken of in the same form."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.review.items import Item

WIDE_GAP = 0.1
FAINT_LOGIT = 1.5
SMALL_OVERLAP, LARGE_CHANGE = 0.5, 0.5
SHAKY = 0.75
_GAPS = {
    "task_gap": "the part: 3 candidates",
    "prompt_gap": "what was clicked: a box or one more click may settle it",
    "model_gap": "the outline: a larger model would probably draw it better",
}


def ask_candidates(item: Item) -> bool:
    """Whether the mask may be of the wrong part, so that the other candidates are worth a look."""
    gap = _number(item, "task_gap")
    return gap is not None and gap >= WIDE_GAP


def headline(item: Item) -> str:
    """How sure the model is, and what it is least sure about: "probably fine; unsure about the part: 3 candidates"."""
    return f"{_level(item)}; {uncertainty_words(item)[0]}"


def uncertainty_words(item: Item) -> list[str]:
    """Where the uncertainty comes from, what weighs most first; at least one line."""
    found: list[tuple[float, str]] = []
    if item.sources.get("visibility") == "absent" or any(one.startswith("object absent") for one in item.reasons):
        found.append((9.0, "the model says that it is not there"))
    elif (logit := _number(item, "object_score")) is not None and abs(logit) < FAINT_LOGIT:
        found.append((3.0, "unsure whether it is there at all"))
    if "across a scene cut" in item.reasons:
        found.append((8.0, "after a scene cut: is it still the same object?"))
    if (overlap := _number(item, "temporal_iou")) is not None and overlap < SMALL_OVERLAP:
        found.append((2.0 - overlap, f"it jumps: {100 * overlap:.0f}% in common with the frame before"))
    if (change := _number(item, "area_change")) is not None and abs(change) > LARGE_CHANGE:
        word = "larger" if change > 0 else "smaller"
        found.append((1.0 + abs(change), f"suddenly {word}: {1 / (1 - min(abs(change), 0.99)):.1f} times"))
    gaps = {name: gap for name in _GAPS if (gap := _number(item, name)) is not None}
    found += [(gap / WIDE_GAP, f"unsure about {_GAPS[name]}") for name, gap in gaps.items() if gap >= WIDE_GAP]
    if (stability := _number(item, "stability")) is not None and stability < SHAKY:
        found.append((1.0, "its edge is blurred"))
    if not found and item.uncertainty is None:
        return ["the model gave no score"]
    if not found and gaps:
        widest = max(gaps, key=lambda name: gaps[name])
        return [f"least sure about {_GAPS[widest].split(':')[0]}"]
    return [text for _, text in sorted(found, key=lambda one: -one[0])] or ["nothing in particular stands out"]


def _level(item: Item) -> str:
    """Coarse on purpose: an exact figure would tell an audited mask by its certainty."""
    if item.uncertainty is None:
        return "not scored"
    return next(text for most, text in _LEVELS if item.uncertainty <= most)


_LEVELS = ((0.35, "probably fine"), (0.65, "doubtful"), (1.0, "probably wrong"))


def _number(item: Item, name: str) -> float | None:
    value = item.sources.get(name)
    return None if value is None or isinstance(value, str) else float(value)
