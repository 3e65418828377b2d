"""Drives the review page in Chromium: a reviewer logs in, sees items and answers; what they were given is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Response

    from .review_server import ReviewServer

KEPT = "Object.keys(localStorage).filter((key) => key.startsWith('masksieve.answer.'))"


@dataclass
class Reviewer:
    """One person at one browser.

    Args:
        name: that they log in with.
        leases: by item_id, as the server gave them; seen: item_ids in the order that they were on screen.
        sent: bodies of their answers; wrong: errors of the page, and requests that left the server.
    """

    name: str
    server: ReviewServer
    context: BrowserContext
    page: Page
    leases: dict[str, dict[str, Any]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @classmethod
    def at(cls, server: ReviewServer, browser: Browser, name: str, **options: Any) -> Reviewer:
        """A browser of their own, not logged in."""
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        page = context.new_page()
        page.set_default_timeout(20_000)
        one = cls(name, server, context, page)
        page.on("pageerror", lambda error: one.wrong.append(str(error)))
        page.on("request", lambda got: None if got.url.startswith(server.url) else one.wrong.append(got.url))
        page.on("request", lambda got: one.sent.append(got.post_data_json) if got.url.endswith("/answer") else None)
        page.on("response", one._given)
        return one

    def _given(self, response: Response) -> None:
        if response.url.endswith(("/claim", "/undo")) and response.ok:
            body = response.json()
            self.leases |= {lease["item"]["item_id"]: lease for lease in body.get("leases", [body])}

    def log_in(self, query: str = "") -> Reviewer:
        """With the address that holds the token, until the first item is on screen."""
        self.page.goto(f"{self.server.url}{query}#token={self.server.token}")
        self.page.fill("#reviewer", self.name)
        self.page.keyboard.press("Enter")
        self.wait_for_item()
        return self

    @property
    def item(self) -> dict[str, Any]:
        """The item on screen, as the server gave it."""
        found: dict[str, Any] = self.leases[self.page.get_attribute("#stage", "data-item") or ""]["item"]
        return found

    def wait_for_item(self, after: str | None = None) -> str:
        """The id of the item that is on screen and may be answered; another one than `after`."""
        self.page.wait_for_function(
            "after => { const at = document.getElementById('stage').dataset; return at.ready && at.item !== after; }",
            arg=after,
        )
        self.seen.append(self.item["item_id"])
        return self.seen[-1]

    def press(self, key: str) -> str:
        """Answer by a key, and wait for what comes next. Returns: the id of the answered item."""
        before = self.seen[-1]
        self.page.keyboard.press(key)
        self.wait_for_item(before)
        return before

    def screen_place(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the video lies on the screen, while the whole frame is shown."""
        box, item = self.page.locator("#canvas").bounding_box(), self.item
        assert box is not None
        scale = min(box["width"] / item["width"], box["height"] / item["height"])
        left = box["x"] + (box["width"] - scale * item["width"]) / 2
        top = box["y"] + (box["height"] - scale * item["height"]) / 2
        return left + scale * (x + 0.5), top + scale * (y + 0.5)

    def settled(self) -> None:
        """Wait until the server has all answers."""
        self.page.wait_for_function(f"() => {KEPT}.length === 0")

    def truth(self) -> NDArray[np.bool_]:
        """What would be right on the asked frame of the item on screen."""
        stem = re.sub(r"\.mp4$", "", self.item["video_name"])
        right: NDArray[np.bool_] = self.server.truth[stem][self.item["frame_index"]] == self.item["object_id"]
        return right

    def measured(self, name: str) -> list[float]:
        """Milliseconds that the page measured: "next item" from a key to the next picture, "click" to its mask."""
        script = "name => performance.getEntriesByName(name).map((one) => one.duration)"
        return [float(one) for one in self.page.evaluate(script, name)]
