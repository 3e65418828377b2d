"""Who may use a review server: tokens, cookies, the brake on guessing, foreign names and foreign pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.review.access import FREE_TRIES, Access, Brake, Foreign, NotLoggedIn, TooMany, is_loopback, the_token

TOKEN = "a-token-of-good-length"


def test_on_loopback_a_token_is_made_anew_each_time() -> None:
    (first, made), (second, _) = the_token("127.0.0.1", None, None), the_token("::1", None, "")
    assert made
    assert first != second
    assert len(first) >= 32


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "127.0.0.1.example.org"])
def test_an_address_that_others_reach_needs_a_token(host: str) -> None:
    with pytest.raises(SettingsError, match="a token, because"):
        the_token(host, None, None)
    assert the_token(host, None, TOKEN) == (TOKEN, False)


@pytest.mark.parametrize("text", ["", "short", "two words that are long enough", "ä" * 20, "x" * 600])
def test_a_token_that_will_not_do_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(text + "\n")
    with pytest.raises(SettingsError, match="a token of 16"):
        the_token("127.0.0.1", tmp_path / "token", None)
    with pytest.raises(SettingsError, match="a token in"):
        the_token("127.0.0.1", tmp_path / "none", None)


def test_loopback_is_what_only_this_machine_reaches() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "::", "localhost.example.org")))


def test_a_cookie_holds_for_the_same_token_alone() -> None:
    access = Access(TOKEN)
    cookie = access.log_in(TOKEN, " Ann ", "a")
    assert access.reviewer(cookie, None, None, "a") == "Ann"
    assert Access(TOKEN).reviewer(cookie, None, None, "a") == "Ann"  # the server was started again
    for other in (Access(TOKEN + "x"), access):
        with pytest.raises(NotLoggedIn):
            other.reviewer(cookie if other is not access else cookie[:-2] + "xx", None, None, "a")


def test_a_header_needs_the_token_and_a_name() -> None:
    access = Access(TOKEN)
    assert access.reviewer(None, f"Bearer {TOKEN}", "J%C3%B6rg", "a") == "Jörg"
    for header, name in ((f"Bearer {TOKEN}", None), (f"Bearer {TOKEN}", "x" * 65), (f"Bearer {TOKEN}", "a%00b"),
                         ("Bearer wrong", "Ann"), (f"Basic {TOKEN}", "Ann")):  # fmt: skip
        with pytest.raises(NotLoggedIn):
            access.reviewer(None, header, name, "a")


def test_who_guesses_waits_ever_longer_and_nobody_else_does() -> None:
    clock = [0.0]
    access = Access(TOKEN, brake=Brake(lambda: clock[0]))
    cookie = access.log_in(TOKEN, "Ann", "guesser")
    for _ in range(FREE_TRIES):
        with pytest.raises(NotLoggedIn):
            access.log_in("wrong", "Eve", "guesser")
    with pytest.raises(TooMany) as first:
        access.log_in(TOKEN, "Eve", "guesser")  # also the right one has to wait
    clock[0] += first.value.wait_seconds
    with pytest.raises(NotLoggedIn):
        access.log_in("wrong", "Eve", "guesser")
    with pytest.raises(TooMany) as second:
        access.log_in("wrong", "Eve", "guesser")
    assert second.value.wait_seconds > first.value.wait_seconds
    assert access.reviewer(cookie, None, None, "guesser") == "Ann"
    assert access.log_in(TOKEN, "Bob", "another")


@pytest.mark.parametrize(
    ("bound", "host", "known"),
    [
        ("127.0.0.1", "127.0.0.1:8420", True),
        ("127.0.0.1", "localhost:8420", True),
        ("127.0.0.1", "[::1]:8420", True),
        ("127.0.0.1", "rebound.example.org:8420", False),
        ("127.0.0.1", "10.0.0.5", False),
        ("127.0.0.1", None, False),
        ("127.0.0.1", "[broken", False),
        ("0.0.0.0", "10.0.0.5:8420", True),
        ("0.0.0.0", "rebound.example.org", False),
        ("review.example.org", "review.example.org", True),
        ("127.0.0.1", "Proxy.example.org", True),
    ],
)
def test_it_answers_to_its_own_names_alone(bound: str, host: str | None, known: bool) -> None:
    access = Access(TOKEN, bound, names=["proxy.example.org"])
    if known:
        access.require_own_name(host)
    else:
        with pytest.raises(Foreign):
            access.require_own_name(host)


@pytest.mark.parametrize(
    ("origin", "site", "own"),
    [
        (None, None, True),
        ("http://127.0.0.1:8420", "same-origin", True),
        ("https://127.0.0.1:8420", None, True),
        ("http://evil.example.org", None, False),
        ("null", None, False),
        ("http://127.0.0.1:9999", None, False),
        (None, "cross-site", False),
        ("http://[broken", None, False),
    ],
)
def test_a_page_of_another_origin_may_ask_for_nothing(origin: str | None, site: str | None, own: bool) -> None:
    if own:
        Access.require_own_page(origin, site, "127.0.0.1:8420")
    else:
        with pytest.raises(Foreign):
            Access.require_own_page(origin, site, "127.0.0.1:8420")
