"""The API over HTTP, on the real queue, facts, videos and model; every refusal is clear JSON and never a 500."""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from pipeline.models import LoadedModel
from pipeline.prompt_masks import mask_from_rle, runs_of
from pipeline.review.access import Access
from pipeline.review.answers import read_answers
from pipeline.review.api import Desk, create_app
from pipeline.review.editor import Editor
from pipeline.review.media import Media
from pipeline.review.queue import Queue
from pipeline.review.serve import _listen, _Server
from pipeline.storage.objects import ObjectStore

from .conftest import Drop

TOKEN = "a-token-of-good-length"
ANSWER = "0123456789abcdef"


@dataclass
class Api:
    """A server in a thread of this process, with an output of its own."""

    url: str
    drop: Drop
    queue: Queue
    store: ObjectStore
    clock: list[float]

    def client(self, reviewer: str = "ann") -> httpx.Client:
        headers = {"authorization": f"Bearer {TOKEN}", "x-reviewer": reviewer}
        return httpx.Client(base_url=f"{self.url}/api/v1/", headers=headers, timeout=60)


@contextmanager
def running(drop: Drop, nano: LoadedModel, folder: Path) -> Iterator[Api]:
    """The app behind uvicorn, on a copy of the drop's output."""
    clock, out = [time.time()], folder / "out"
    shutil.copytree(drop.out, out)
    store, editor = ObjectStore(out), Editor(nano)
    queue = Queue(folder / "queue.sqlite", store.identity, drop.settings.review, lambda: clock[0])
    queue.sync(store)
    media = Media(store, drop.settings, lambda: editor)
    app = create_app(Desk(queue, media, Access(TOKEN), drop.settings.review))
    ready = threading.Event()
    with _listen("127.0.0.1", 0) as listening:
        server = _Server(uvicorn.Config(app, log_config=None, lifespan="off"), ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        assert ready.wait(30)
        yield Api(f"http://127.0.0.1:{listening.getsockname()[1]}", drop, queue, store, clock)
        server.should_exit = True
        thread.join(30)
    media.close()
    queue.close()


@pytest.fixture
def api(review_drop: Drop, nano: LoadedModel, tmp_path: Path) -> Iterator[Api]:
    with running(review_drop, nano, tmp_path) as one:
        yield one


@pytest.fixture(scope="module")
def refusing(review_drop: Drop, nano: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One server for all tests that change nothing."""
    with running(review_drop, nano, tmp_path_factory.mktemp("refusing")) as one:
        yield one


@pytest.fixture(scope="module")
def refused_lease(refusing: Api) -> dict[str, Any]:
    with refusing.client() as client:
        return claimed(client)


def claimed(client: httpx.Client, **body: Any) -> dict[str, Any]:
    """A lease."""
    done = client.post("claim", json=body)
    assert done.status_code == 200, done.text
    lease: dict[str, Any] = done.json()["leases"][0]
    return lease


def answered(client: httpx.Client, lease: dict[str, Any], **changes: Any) -> httpx.Response:
    item = lease["item"]
    body = {
        "answer_id": ANSWER, "lease_id": lease["lease_id"], "verdict": "accept",
        "frame_index": item["frame_index"], "seconds": 2.5, **changes,
    }  # fmt: skip
    return client.post(f"items/{item['item_id']}/answer", json=body)


def refusal(response: httpx.Response) -> tuple[int, str]:
    """Status and kind of a refusal, whose form is the one of all."""
    error = response.json()["error"]
    assert set(error) == {"expected", "got", "next_step", "kind"}, error
    assert all(isinstance(part, str) and part for part in error.values())
    return response.status_code, error["kind"]


def test_from_a_claim_to_an_answer_in_the_output(api: Api) -> None:
    with api.client() as client:
        assert client.get("me").json()["reviewer"] == "ann"
        before = client.get("stats").json()["waiting"]["total"]
        lease = claimed(client)
        item = lease["item"]
        assert 0 < lease["seconds_left"] <= 300
        size = item["height"], item["width"]
        assert mask_from_rle(item["shown_mask"], "it").shape == size == (160, 160)
        strip = client.get(f"items/{item['item_id']}/strip").json()
        assert strip["video"]
        assert strip["note"] is None
        frames = [one["frame_index"] for one in strip["frames"]]
        assert frames == sorted(frames)
        assert item["frame_index"] in frames
        assert sum(one["in_stretch"] for one in strip["frames"]) == item["rows"]
        for index in frames:
            picture = client.get(f"items/{item['item_id']}/frames/{index}.jpg", params={"width": 80})
            assert picture.headers["content-type"] == "image/jpeg"
            assert "immutable" in picture.headers["cache-control"]
            assert Image.open(io.BytesIO(picture.content)).size == (80, 80)
        done = answered(client, lease)
        assert done.json()["answered_today"] == 1
        again = answered(client, lease)  # sent twice
        assert (again.status_code, again.json()["answered_today"]) == (200, 1)
        assert client.get("stats").json()["waiting"]["total"] == before - 1
        undone = client.post("undo", json={"answer_id": ANSWER}).json()
        assert undone["item"]["item_id"] == item["item_id"]
        assert answered(client, undone, answer_id="f" * 16, scope="frame").status_code == 200
    api.queue.export(api.store, force=True)
    (kept,) = read_answers(api.store)
    assert (kept.answer_id, kept.verdict, kept.scope, kept.reviewer) == ("f" * 16, "accept", "frame", "ann")
    assert kept.seconds == 2.5


def test_a_fix_is_kept_as_drawn_with_what_it_changed(api: Api) -> None:
    with api.client() as client:
        lease = claimed(client)
        item = lease["item"]
        place = f"items/{item['item_id']}/segment"
        point = [[item["width"] / 2, item["height"] / 2, 1]]
        body = {"frame_index": item["frame_index"], "points": point, "mask": item["shown_mask"]}
        made = client.post(place, json=body).json()
        mask_hw = mask_from_rle(made["mask"], "it")
        assert mask_hw.shape == (item["height"], item["width"])
        boxed = client.post(place, json={"frame_index": item["frame_index"], "box": [20, 20, 90, 100]}).json()
        assert mask_from_rle(boxed["mask"], "it").any()
        given_hw = np.zeros(mask_hw.shape, bool)
        given_hw[10:30, 20:40] = True
        mask = {"size": list(given_hw.shape), "counts": runs_of(given_hw)}
        done = answered(client, lease, verdict="fix", scope="stretch", mask=mask, prompts={"points": point})
        assert done.status_code == 200, done.text
    api.queue.export(api.store, force=True)
    (kept,) = read_answers(api.store)
    shown_hw = mask_from_rle(item["shown_mask"], "it")
    assert kept.mask is not None
    assert (mask_from_rle({"size": [160, 160], "counts": kept.mask.counts}, "it") == given_hw).all()
    assert kept.scope == "frame"
    assert kept.area_px == shown_hw.sum()
    assert kept.iou == pytest.approx((shown_hw & given_hw).sum() / (shown_hw | given_hw).sum())


def test_a_pick_needs_only_the_number_of_the_candidate(api: Api) -> None:
    with api.client() as client:
        lease = claimed(client)
        found = client.get(f"items/{lease['item']['item_id']}/candidates").json()["candidates"]
        assert len(found) == 3
        assert sum(one["shown"] for one in found) == 1
        number = next(i for i, one in enumerate(found) if mask_from_rle(one["mask"], "it").any())
        assert answered(client, lease, verdict="pick", candidate=number).status_code == 200
    api.queue.export(api.store, force=True)
    (kept,) = read_answers(api.store)
    assert kept.candidate == number
    assert kept.mask is not None
    right = mask_from_rle(found[number]["mask"], "it")
    assert (mask_from_rle({"size": [160, 160], "counts": kept.mask.counts}, "it") == right).all()


def test_nothing_that_a_client_sees_tells_an_audit(api: Api) -> None:
    with api.client() as client:
        leases = [one for _ in range(3) for one in client.post("claim", json={"count": 10}).json()["leases"]]
        kinds = {api.queue.item(one["item"]["item_id"]).kind for one in leases}
        assert kinds == {"review", "audit"}
        changes = client.get("changes", params={"limit": 1000}).json()
        assert {one["item_id"] for one in changes["changes"]} >= {one["item"]["item_id"] for one in leases}
        assert changes["cursor"] >= changes["changes"][-1]["cursor"]
        seen = json.dumps([leases, changes, client.get("stats").json()["waiting"]])
    for word in ("audit", "kind", "probability", "review_id", 'reasons": ['):
        assert word not in seen, word
    assert len({frozenset(one["item"]) for one in leases}) == 1


def test_where_the_video_is_gone_the_stored_picture_serves_and_why_is_said(api: Api) -> None:
    with api.client() as client:
        lease = claimed(client)
        item = api.queue.item(lease["item"]["item_id"])
    gone = Path(item.video_uri)
    hidden = gone.with_suffix(".hidden")
    gone.rename(hidden)
    try:
        with api.client("bob") as client:
            lease = claimed(client)
            one = api.queue.item(lease["item"]["item_id"])
            for _ in range(20):
                if one.video_uri == item.video_uri:
                    break
                lease = claimed(client)
                one = api.queue.item(lease["item"]["item_id"])
            name = one.item_id
            strip = client.get(f"items/{name}/strip").json()
            assert not strip["video"]
            assert "cannot be shown" in strip["note"]
            assert client.get(f"items/{name}/frames/{one.frame_index}.jpg").status_code == 200
            others = [f["frame_index"] for f in strip["frames"] if f["frame_index"] != one.frame_index]
            assert refusal(client.get(f"items/{name}/frames/{others[0]}.jpg")) == (404, "not_found")
            body = {"frame_index": one.frame_index, "points": [[80, 80, 1]]}
            assert client.post(f"items/{name}/segment", json=body).status_code == 200
    finally:
        hidden.rename(gone)


def test_leases_that_do_not_hold_are_refused(api: Api) -> None:
    with api.client("ann") as ann, api.client("bob") as bob:
        lease = claimed(ann)
        name = lease["item"]["item_id"]
        assert refusal(bob.post("claim", json={"item_id": name})) == (409, "lease_lost")
        assert refusal(answered(bob, {**lease, "lease_id": "no-such-lease"})) == (409, "lease_lost")
        assert refusal(bob.post(f"items/{name}/skip", json={"lease_id": "x"})) == (409, "lease_lost")
        assert ann.post(f"items/{name}/renew", json={"lease_id": lease["lease_id"]}).status_code == 200
        api.clock[0] += 301
        assert refusal(answered(ann, lease)) == (409, "lease_lost")
        again = claimed(ann, item_id=name)
        assert answered(ann, again).status_code == 200
        assert refusal(answered(ann, again, verdict="reject")) == (409, "conflict")  # other content, same id
        assert refusal(answered(ann, again, answer_id="e" * 16)) == (409, "conflict")  # answered before
        assert refusal(bob.post("undo", json={"answer_id": ANSWER})) == (404, "not_found")  # not his
        skipped = claimed(ann)
        place = f"items/{skipped['item']['item_id']}"
        assert ann.post(f"{place}/skip", json={"lease_id": skipped["lease_id"], "reason": "dark"}).json() == {}
        given_back = claimed(bob)
        place = f"items/{given_back['item']['item_id']}"
        assert bob.post(f"{place}/release", json={"lease_id": given_back["lease_id"]}).json() == {}


RLE = {"size": [160, 160], "counts": [0, 25600]}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"verdict": "maybe"}, "malformed"),
        ({"frame_index": 10_000}, "malformed"),
        ({"frame_index": -1}, "malformed"),
        ({"answer_id": "../../etc/passwd"}, "malformed"),
        ({"answer_id": "0123\x00"}, "malformed"),
        ({"verdict": "fix"}, "malformed"),
        ({"verdict": "pick", "candidate": 3}, "malformed"),
        ({"verdict": "accept", "mask": RLE}, "malformed"),
        ({"verdict": "fix", "mask": {"size": [8, 8], "counts": [64]}}, "malformed"),
        ({"verdict": "fix", "mask": {"size": [160, 160], "counts": [25600]}}, "malformed"),
        ({"verdict": "fix", "mask": {"size": [160, 160], "counts": [1, 2, 3]}}, "malformed"),
        ({"verdict": "fix", "mask": {"size": [160, 160], "counts": [-1, 25601]}}, "malformed"),
        ({"verdict": "fix", "mask": {"size": [160, 160], "counts": "\u0000 no counts"}}, "malformed"),
        ({"verdict": "fix", "mask": {"size": [160, 160], "counts": [1.5]}}, "malformed"),
        ({"seconds": -1}, "malformed"),
        ({"prompts": {"a": "x" * 70_000}}, "malformed"),
        ({"prompts": {"a": "\x00"}}, "malformed"),
        ({"more": 1}, "malformed"),
    ],
)
def test_a_malformed_answer_is_refused(
    refusing: Api, refused_lease: dict[str, Any], changes: dict[str, Any], kind: str
) -> None:
    with refusing.client() as client:
        assert refusal(answered(client, refused_lease, **changes)) == (422, kind)


@pytest.mark.parametrize(
    "changes",
    [
        {"points": [[1, 1, 1]] * 65},
        {"points": [[1, 1, 1]] * 5000},
        {"points": []},
        {"points": [[500, 1, 1]]},
        {"points": [[1, 1, 2]]},
        {"points": [["1e999", 1, 1]]},
        {"box": [50, 50, 20, 90]},
        {"box": [0, 0, 500, 500]},
        {"points": [[1, 1, 1]], "mask": {"size": [160, 161], "counts": [25760]}},
    ],
)
def test_prompts_that_will_not_do_are_refused(
    refusing: Api, refused_lease: dict[str, Any], changes: dict[str, Any]
) -> None:
    with refusing.client() as client:
        item = refused_lease["item"]
        body = {"frame_index": item["frame_index"], **changes}
        assert refusal(client.post(f"items/{item['item_id']}/segment", json=body)) == (422, "malformed")


def test_hostile_requests_are_refused_and_nothing_breaks(api: Api) -> None:
    with api.client() as client:
        lease = claimed(client)
        name, url = lease["item"]["item_id"], api.url
        for path in ("items/..%2f..%2fx/strip", "items/%2e%2e/strip", "items/a%00b/strip", f"items/{name}/frames/x.jpg",
                     f"items/{name}/frames/..%2f1.jpg", "items/ffffffffffffffffffff/strip"):  # fmt: skip
            assert refusal(client.get(path))[0] in (404, 422), path
        for path in ("/static/..%2f..%2fapi.py", "/static/%2e%2e/api.py", "/static/a%00b", "/static//etc/passwd", "/x"):
            assert refusal(client.get(url + path)) == (404, "not_found"), path
        assert refusal(client.get(f"items/{name}/frames/{2**31 - 1}.jpg")) == (404, "not_found")
        typed = {"content-type": "application/json"}
        for content in (b'{"count": NaN}', b"[" * 100_000, b"{", b'"\xed\xa0\x80"', b'{"drop": "a\\u0000b"}',
                        b'{"drop": "\\ud800"}', b'{"count": 1' + b"0" * 5000 + b"}"):  # fmt: skip
            status, kind = refusal(client.post("claim", content=content, headers=typed))
            assert (status, kind) in ((400, "malformed"), (422, "malformed")), content[:40]
        large = b'{"count": 1' + b" " * (17 << 20) + b"}"
        assert refusal(client.post("claim", content=large, headers=typed)) == (413, "too_large")
        assert refusal(client.request("DELETE", "claim"))[0] == 405
        assert refusal(client.post("claim", json={}, headers={"host": "rebound.example.org"})) == (403, "foreign")
        assert refusal(client.post("claim", json={}, headers={"origin": "http://evil.example.org"})) == (403, "foreign")
        assert client.get("health").json() == {"ok": True}
    with httpx.Client(base_url=url) as stranger:
        for method, path in (("GET", "me"), ("POST", "claim"), ("GET", "stats"), ("GET", f"items/{name}/strip"),
                             ("GET", f"items/{name}/frames/0.jpg"), ("GET", "changes"), ("POST", "undo")):  # fmt: skip
            assert refusal(stranger.request(method, f"/api/v1/{path}")) == (401, "login"), path
        for content in (b" " * (1 << 20), iter([b" " * (1 << 20)])):  # nobody reads so much before asking who it is
            assert refusal(stranger.post("/api/v1/login", content=content, headers=typed)) == (401, "login")
        entered = stranger.post("/api/v1/login", json={"token": TOKEN, "reviewer": "Ann"})
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert stranger.get("/api/v1/me").json()["reviewer"] == "Ann"
        assert stranger.get("/").headers["content-security-policy"].startswith("default-src 'self'")
        stranger.post("/api/v1/logout")
        assert refusal(stranger.get("/api/v1/me")) == (401, "login")
        for _ in range(5):
            assert refusal(stranger.post("/api/v1/login", json={"token": "no", "reviewer": "E"})) == (401, "login")
        braked = stranger.post("/api/v1/login", json={"token": TOKEN, "reviewer": "E"})
        assert refusal(braked) == (429, "too_many")
        assert int(braked.headers["retry-after"]) >= 1
