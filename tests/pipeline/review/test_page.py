"""The review page in a real browser, on a real server with real labelled clips and 10,000 items in its queue."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.review.answers import Answer
from pipeline.rle import decode

from .conftest import Drop
from .page_driver import KEPT, Reviewer
from .review_server import ReviewServer, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[3]
STATIC = ROOT / "pipeline" / "review" / "static"
ITEMS = int(os.environ.get("MASKSIEVE_PAGE_ITEMS", "10000"))
NEXT_MS, CLICK_MS = 200, 300  # what is promised; a test on a busy machine gets three times as much
SLACK = 3

Open = Callable[..., Reviewer]


@pytest.fixture(scope="module")
def server(review_drop: Drop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReviewServer]:
    with served(review_drop, tmp_path_factory.mktemp("served"), items=ITEMS) as running:
        yield running


@pytest.fixture
def reviewer(server: ReviewServer, browser: Browser) -> Iterator[Open]:
    """`reviewer("Ada")`: logged in, with an item on screen. At the end nothing may have gone wrong on their page."""
    opened: list[Reviewer] = []

    def one(name: str, query: str = "", **options: Any) -> Reviewer:
        opened.append(Reviewer.at(server, browser, name, **options))
        return opened[-1].log_in(query)

    yield one
    for each in opened:
        each.context.close()
    assert [line for each in opened for line in each.wrong] == []


def mask_of(answer: Answer) -> NDArray[np.bool_]:
    assert answer.mask is not None
    found: NDArray[np.bool_] = decode(answer.mask.counts.encode(), answer.mask.height, answer.mask.width)
    return found


def find_there(one: Reviewer) -> None:
    """Answer until an item's object can be seen on its frame."""
    for _ in range(12):
        if one.truth().sum() > 60:
            return
        one.press("n")


def inside(mask_hw: NDArray[np.bool_]) -> tuple[int, int]:
    """(x, y) of a pixel well inside of a mask: the one whose neighbourhood is fullest."""
    padded = np.pad(mask_hw.astype(float), 4)
    full = sum(np.roll(padded, (dy, dx), (0, 1)) for dy in range(-4, 5) for dx in range(-4, 5))[4:-4, 4:-4]
    y, x = np.unravel_index(np.argmax(full * mask_hw), mask_hw.shape)
    return int(x), int(y)


def test_the_page_needs_nothing_from_elsewhere_and_no_file_is_long() -> None:
    for path in sorted(STATIC.iterdir()):
        text = path.read_text()
        assert len(text.splitlines()) < 400, path.name
        assert re.findall(r"(?:src|href|url|from|import|fetch)\s*[=(\s]\s*[\"'(]?(?:https?:|//)[^\"')\s]*", text) == []
        assert not re.search(r"\sstyle=|\son[a-z]+=\"|<script>|innerHTML|\beval\(", text), (
            f"{path.name}: barred by the CSP"
        )


@pytest.mark.slow
def test_the_token_opens_the_page_a_wrong_one_does_not_and_neither_stays_in_the_address(
    server: ReviewServer, browser: Browser
) -> None:
    one = Reviewer.at(server, browser, "Ada")
    one.page.goto(server.url)
    one.page.fill("#reviewer", "Ada")
    one.page.fill("#token", "a guess")
    one.page.keyboard.press("Enter")
    one.page.wait_for_function("() => document.querySelector('.wrong').textContent !== ''")
    assert "not the right one" in one.page.inner_text(".wrong")
    assert one.page.get_attribute("body", "data-screen") == "login"
    one.page.fill("#token", server.token)
    one.page.keyboard.press("Enter")
    one.wait_for_item()
    one.page.reload()
    one.wait_for_item()
    assert one.page.url == server.url
    other = Reviewer.at(server, browser, "Bob").log_in()
    assert "token" not in other.page.url
    assert other.page.evaluate("document.cookie") == ""
    for each in (one, other):
        each.context.close()
        assert each.wrong == []


@pytest.mark.slow
def test_twenty_items_by_keyboard_alone_each_on_screen_at_once(reviewer: Open, server: ReviewServer) -> None:
    ada = reviewer("Ada")
    assert re.search(r"\d today · [\d,]{5,} waiting", ada.page.inner_text("#progress-said"))
    given: dict[str, str] = {}
    for key in "aanraraanaararaanara":
        given[ada.press(key)] = {"a": "accept", "n": "absent", "r": "reject"}[key]
        ada.page.wait_for_timeout(150)
    ada.settled()
    assert len(given) == 20
    mine = {one.item_id: one for one in server.answers().values() if one.reviewer == "Ada"}
    assert {item: one.verdict for item, one in mine.items()} == given
    assert all(one.seconds is not None and 0.1 < one.seconds < 60 for one in mine.values())
    times = sorted(ada.measured("next item"))
    print(f"next item on screen: median {median(times):.0f} ms, slowest {times[-1]:.0f} ms of {len(times)}")
    assert median(times) <= NEXT_MS
    assert times[-3] <= SLACK * NEXT_MS


@pytest.mark.slow
def test_a_click_makes_the_mask_and_enter_gives_it(reviewer: Open, server: ReviewServer) -> None:
    ada = reviewer("Ada fixes")
    find_there(ada)
    item, right_hw = ada.item, ada.truth()
    ada.page.keyboard.press("f")
    ada.page.wait_for_selector("#fixing:not([hidden])")
    ada.page.keyboard.press("Enter")  # nothing was changed yet: refused
    assert ada.page.get_attribute("#stage", "data-item") == item["item_id"]
    x, y = inside(right_hw)
    for count, button in ((1, "left"), (2, "left"), (3, "right")):
        place = (x, y) if button == "left" else inside(~right_hw)
        ada.page.mouse.click(*ada.screen_place(*place), button=button)  # type: ignore[arg-type]
        ada.page.wait_for_function(f"() => performance.getEntriesByName('click').length >= {count}")
    ada.page.keyboard.press("z")  # takes the last click back
    ada.press("Enter")
    ada.settled()
    answer = next(one for one in server.answers().values() if one.item_id == item["item_id"])
    assert (answer.verdict, answer.frame_index) == ("fix", item["frame_index"])
    assert answer.prompts == {"points": [[x, y, 1], [x, y, 1]], "box": None, "strokes": 0}
    fixed_hw = mask_of(answer)
    assert fixed_hw[y, x]
    both, either = (fixed_hw & right_hw).sum(), (fixed_hw | right_hw).sum()
    assert both / either > 0.5
    times = ada.measured("click")
    print(f"a click's mask on screen: {', '.join(f'{one:.0f}' for one in times)} ms")
    assert min(times) <= SLACK * CLICK_MS


@pytest.mark.slow
def test_fingers_on_a_tablet_draw_a_box_and_paint(reviewer: Open, server: ReviewServer) -> None:
    ada = reviewer("Ada's tablet", viewport={"width": 1024, "height": 768}, has_touch=True, color_scheme="dark")
    find_there(ada)
    item, right_hw = ada.item, ada.truth()
    assert ada.page.evaluate("document.documentElement.scrollWidth") == 1024
    assert ada.page.evaluate("document.documentElement.scrollHeight") == 768
    ada.page.locator("[data-do=fix]").tap()
    ys, xs = np.nonzero(right_hw)
    corners = [(xs.min() - 1, ys.min() - 1), (xs.max() + 1, ys.max() + 1)]
    start, end = [ada.screen_place(float(x), float(y)) for x, y in corners]
    ada.page.mouse.move(*start)
    ada.page.mouse.down()
    ada.page.mouse.move(*end, steps=4)
    ada.page.mouse.up()
    ada.page.wait_for_function("() => performance.getEntriesByName('click').length === 1")
    ada.page.locator("[data-do=tool-erase]").tap()
    x, y = inside(right_hw)
    ada.page.touchscreen.tap(*ada.screen_place(x, y))
    ada.page.locator("[data-do=confirm]").tap()
    ada.wait_for_item(item["item_id"])
    ada.settled()
    answer = next(one for one in server.answers().values() if one.item_id == item["item_id"])
    assert answer.prompts is not None
    assert answer.prompts["strokes"] == 1
    assert answer.prompts["box"][2] > answer.prompts["box"][0]
    assert mask_of(answer).any()
    assert not mask_of(answer)[y, x]


@pytest.mark.slow
def test_an_answer_taken_back_comes_on_screen_again_and_never_counts(reviewer: Open, server: ReviewServer) -> None:
    ada = reviewer("Ada undoes")
    first = ada.press("r")
    ada.settled()
    second = ada.seen[-1]
    ada.page.keyboard.press("z")
    assert ada.wait_for_item(second) == first
    ada.press("a")
    assert ada.seen[-1] == second
    ada.settled()
    mine = [one for one in server.answers().values() if one.reviewer == "Ada undoes"]
    assert [(one.item_id, one.verdict) for one in mine] == [(first, "accept")]
    assert len(ada.sent) == 2


@pytest.mark.slow
def test_candidates_lie_side_by_side_and_a_number_picks_one(reviewer: Open, server: ReviewServer) -> None:
    ada = reviewer("Ada picks")
    if not ada.page.is_visible("#candidates"):
        ada.page.keyboard.press("2")  # the first press shows what there is to pick
    ada.page.wait_for_selector("#candidates .card")
    assert ada.page.locator("#candidates .card").count() == 3
    item = ada.item
    free = ada.page.locator("#candidates .card:not(.shown):not(:has-text('nothing here'))").first
    number = int(free.get_attribute("data-candidate") or "")
    ada.press(str(number + 1))
    ada.settled()
    answer = next(one for one in server.answers().values() if one.item_id == item["item_id"])
    assert (answer.verdict, answer.candidate, answer.scope) == ("pick", number, "frame")
    assert mask_of(answer).any()


@pytest.mark.slow
def test_two_reviewers_at_once_get_different_items(reviewer: Open, server: ReviewServer) -> None:
    pair = [reviewer("Ada and"), reviewer("Bob")]
    for key in "aranaar":
        for one in pair:
            one.press(key)
    for one in pair:
        one.settled()
    given = [set(one.leases) for one in pair]
    assert min(map(len, given)) >= 8
    assert given[0] & given[1] == set()
    by_name = {one.name: sum(each.reviewer == one.name for each in server.answers().values()) for one in pair}
    assert by_name == {"Ada and": 7, "Bob": 7}


@pytest.mark.slow
def test_a_lost_connection_loses_no_answer_also_when_a_lease_ran_out_meanwhile(
    reviewer: Open, server: ReviewServer
) -> None:
    ada = reviewer("Ada offline")
    ada.press("a")
    ada.settled()
    ada.page.wait_for_timeout(1500)  # the items that come next are here by now
    first = ada.item["item_id"]
    ada.context.set_offline(True)
    gone = [ada.press("r"), ada.press("a")]
    assert gone[0] == first
    ada.page.wait_for_selector("#banner:not([hidden])")
    assert "kept" in ada.page.inner_text("#banner")
    assert "2 kept here" in ada.page.inner_text("#unsent")
    assert len(ada.page.evaluate(KEPT)) == 2
    before = {one.item_id for one in server.answers().values()}
    assert before & set(gone) == set()
    release(server, ada, gone[1])
    ada.page.keyboard.press("n")  # the last one that is here: nothing is left to show
    ada.page.wait_for_selector("body[data-screen=offline]")
    assert "3 answers are kept in this browser" in ada.page.inner_text("#screen")
    gone.append(ada.seen[-1])
    ada.context.set_offline(False)
    ada.wait_for_item(gone[-1])
    ada.settled()
    assert ada.page.is_hidden("#banner")
    mine = {one.item_id: one.verdict for one in server.answers().values() if one.item_id in gone}
    assert mine == dict(zip(gone, ("reject", "accept", "absent"), strict=True))


def release(server: ReviewServer, reviewer: Reviewer, item_id: str) -> None:
    """The lease ends as if its time had run out."""
    lease = reviewer.leases[item_id]["lease_id"]
    headers = {"Authorization": f"Bearer {server.token}", "X-Reviewer": reviewer.name}
    address = f"{server.url}api/v1/items/{item_id}/release"
    httpx.post(address, json={"lease_id": lease}, headers=headers).raise_for_status()


@pytest.mark.slow
def test_tab_chooses_between_stretch_and_frame_and_arrows_walk_the_stretch(
    reviewer: Open, server: ReviewServer
) -> None:
    ada = reviewer("Ada looks")
    for _ in range(12):
        if ada.item["rows"] > 2:
            break
        ada.press("s")
    item = ada.item
    ada.page.wait_for_function("() => document.querySelectorAll('#frames button').length > 2")
    at = ada.page.locator("#frames [aria-selected=true]")
    assert at.get_attribute("data-frame") == str(item["frame_index"])
    step = "ArrowRight" if item["frame_index"] < item["last_frame"] else "ArrowLeft"
    ada.page.keyboard.press(step)
    away = int(at.get_attribute("data-frame") or "")
    assert away != item["frame_index"]
    assert f"asked about {item['frame_index']}" in ada.page.inner_text("#where")
    ada.page.keyboard.press("l")
    ada.page.wait_for_function("() => document.querySelector('[data-do=loop]').getAttribute('aria-pressed') === 'true'")
    ada.page.keyboard.press("Home")
    ada.page.keyboard.press(step)
    ada.page.keyboard.press("Tab")
    ada.press("a")
    ada.settled()
    answer = next(one for one in server.answers().values() if one.item_id == item["item_id"])
    assert (answer.scope, answer.frame_index) == ("frame", away)


@pytest.mark.slow
def test_masks_are_read_and_written_in_the_browser_as_here(reviewer: Open) -> None:
    ada = reviewer("Ada's masks")
    rng = np.random.default_rng(7)
    for height, width in ((1, 1), (7, 5), (40, 90)):
        mask_hw = rng.random((height, width)) < 0.4
        mask_hw[:, : width // 2] = rng.random() < 0.5
        flat = mask_hw.ravel(order="F").astype(int)
        ends = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
        counts = [0, *counts] if flat[0] else counts
        script = """async (rle) => {
            const masks = await import("/static/rle.js"), mask = masks.decode(rle);
            return [Array.from(mask.data), masks.encode(mask), masks.area(rle), masks.bounds(rle)];
        }"""
        data, again, area, bounds = ada.page.evaluate(script, {"size": [height, width], "counts": counts})
        assert np.array_equal(np.reshape(data, (height, width)), mask_hw)
        assert (again["counts"], area) == (counts, mask_hw.sum())
        if mask_hw.any():
            ys, xs = np.nonzero(mask_hw)
            assert bounds == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.slow
def test_where_nothing_waits_the_page_says_so_and_shows_everything_on_request(
    server: ReviewServer, browser: Browser
) -> None:
    one = Reviewer.at(server, browser, "Ada filters")
    one.page.goto(f"{server.url}?label=no%20such%20label#token={server.token}")
    one.page.fill("#reviewer", "Ada filters")
    one.page.keyboard.press("Enter")
    one.page.wait_for_selector("body[data-screen=empty]")
    assert "Nothing waits for no such label" in one.page.inner_text("#screen")
    one.page.click("text=Show everything")
    one.wait_for_item()
    one.context.close()
    assert one.wrong == []
