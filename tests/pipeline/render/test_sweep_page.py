"""The page of a sweep in a real browser: keys move the slider, the figures are those of the CSV, nothing is loaded."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.certificate import Evidence
from pipeline.cli.entry import main
from pipeline.policy import Policy
from pipeline.render.film import FilmWriter
from pipeline.render.sweep_crops import Crop
from pipeline.render.sweep_page import draw_page
from pipeline.settings import StorageSettings
from pipeline.source import video_sha256
from pipeline.sweep import sweep
from pipeline.sweep_input import find_labels
from pipeline.sweep_truth import load_truth

from ..sweeping import FRAMES, SIDE, facts, write_labels, write_truth

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sweep with truth, whose first video is at hand, and one without."""
    folder = tmp_path_factory.mktemp("sweep")
    tables = [facts(number) for number in range(12)]
    for number, table in enumerate(tables):
        write_labels(folder / "out", table, "day" if number % 2 else "night")
    film = folder / "clip.mp4"
    with FilmWriter(film, 10) as writer:
        for i in range(2 * FRAMES):
            writer.append(np.full((SIDE, SIDE, 3), (3 * i, 200 - 3 * i, 90), np.uint8))
    at_hand = {"video_id": video_sha256(film), "video_uri": str(film)}
    write_labels(folder / "out", facts(20, **at_hand), "day")
    write_truth(folder / "truth.parquet", tables)
    for name, truth in (("truth", ["--truth", str(folder / "truth.parquet"), "--bad-iou", "0.75"]), ("plain", [])):
        with pytest.raises(SystemExit) as ended:
            main(["sweep", str(folder / "out"), "--out", str(folder / name), *truth])
        assert ended.value.code == 0
    return {name: folder / name for name in ("truth", "plain")}


def opened(browser: Browser, folder: Path, **options: Any) -> tuple[Page, list[str]]:
    """The page, and what went wrong or over the network."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}, **options).new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda one: wrong.append(one.url) if not one.url.startswith(("data:", "file:")) else None)
    page.goto((folder / "sweep.html").as_uri())
    return page, wrong


def figures(folder: Path) -> list[dict[str, str]]:
    """The rows of the CSV."""
    with (folder / "sweep.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def percent(text: str) -> str:
    return f"{100 * float(text):.1f}%"


def risky(text: str) -> str:
    """With one more decimal below 1%."""
    return f"{100 * float(text):.2f}%" if float(text) < 0.01 else percent(text)


@pytest.mark.slow
def test_the_keyboard_moves_the_slider_and_the_figures_are_those_of_the_csv(
    browser: Browser, pages: dict[str, Path]
) -> None:
    rows = figures(pages["truth"])
    page, wrong = opened(browser, pages["truth"])
    at = next(i for i, row in enumerate(rows) if row["current"] == "1")
    page.focus("#slider")
    seen = []
    for key, move in (
        (None, 0),
        ("ArrowRight", 1),
        ("ArrowRight", 1),
        ("PageUp", 19),
        ("ArrowLeft", -1),
        ("End", None),
    ):
        if key is not None:
            page.keyboard.press(key)
        at = len(rows) - 1 if move is None else int(page.input_value("#slider")) if abs(move) > 1 else at + move
        row = rows[at]
        assert page.input_value("#slider") == str(at)
        assert float(page.inner_text("#threshold")) == pytest.approx(float(row["threshold"]))
        assert page.inner_text("#coverage") == percent(row["coverage"])
        assert page.inner_text("#error") == risky(row["error_rate"])
        assert f"{risky(row['error_low'])} to {risky(row['error_high'])}" in page.inner_text("#error-more")
        assert page.inner_text("#iou") == f"{float(row['mean_iou']):.3f}"
        assert float(page.inner_text("#review")) == pytest.approx(float(row["stretches_per_video"]), abs=0.051)
        assert f"{int(row['review_rows']):,} masks" in page.inner_text("#review-more")
        assert percent(row["coverage"]) in (page.get_attribute("#slider", "aria-valuetext") or "")
        seen.append(at)
    assert len(set(seen)) == len(seen)
    page.click("#back")
    assert rows[int(page.input_value("#slider"))]["current"] == "1"
    assert "no evidence" in page.inner_text("#evidence")
    page.keyboard.press("ArrowRight")
    assert "no certificate names it" in page.inner_text("#evidence")
    assert wrong == []


@pytest.mark.slow
def test_examples_lie_on_their_side_and_groups_follow_the_slider(browser: Browser, pages: dict[str, Path]) -> None:
    page, wrong = opened(browser, pages["truth"], color_scheme="dark")
    threshold = float(page.inner_text("#threshold"))
    sides = {
        side: [float(text) for text in page.locator(f"#{side} figcaption b").all_inner_texts()]
        for side in ("below", "above")
    }
    assert sides["below"]
    assert max(sides["below"]) <= threshold + 5e-4
    assert min(sides["above"]) >= threshold - 5e-4
    assert page.evaluate("[...document.images].every((one) => one.naturalWidth > 100)")
    before = page.locator("tbody .covered").all_inner_texts()
    page.focus("#slider")
    page.keyboard.press("Home")
    after = page.locator("tbody .covered").all_inner_texts()
    assert len(before) > 2
    assert all(float(one[:-1]) >= float(two[:-1]) for one, two in zip(before, after, strict=True))
    assert before != after
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    assert wrong == []


@pytest.mark.slow
def test_without_truth_the_page_says_that_risk_is_unknown(browser: Browser, pages: dict[str, Path]) -> None:
    page, wrong = opened(browser, pages["plain"])
    assert page.inner_text(".tiles").count("unknown") == 2
    assert "no truth was given" in page.inner_text("main")
    rows = figures(pages["plain"])
    page.focus("#slider")
    page.keyboard.press("Home")
    assert page.inner_text("#coverage") == percent(rows[0]["coverage"])
    assert rows[0]["error_rate"] == ""
    assert wrong == []


def test_the_page_is_one_file_and_names_of_labels_are_no_markup(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    table = facts(0, label=evil)
    write_labels(tmp_path / "out", table)
    write_labels(tmp_path / "out", facts(1, label="cup"))
    write_truth(tmp_path / "truth.parquet", [table])
    labels = find_labels(str(tmp_path / "out"), StorageSettings())
    found = sweep(labels, Policy(name=evil), truth=load_truth(tmp_path / "truth.parquet", labels))
    page = draw_page(found, [Crop(b"jpeg", 0.1, evil, None, False)], Evidence(False, evil), title=evil)
    assert "<img src=x" not in page
    assert page.count("</script>") == 2
    loaded = re.findall(r"(?:src|href|url|import)\s*[=(]\s*['\"]?([^'\"\s>)]*)", page)
    assert [one for one in loaded if one.startswith(("http", "//", "file"))] == []
    assert "default-src 'none'" in page
