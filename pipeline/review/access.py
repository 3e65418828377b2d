"""Who may use a review server: a token, a signed cookie or header, pages of its own alone, and a brake on guessing."""

from __future__ import annotations

import hmac
import ipaddress
import math
import re
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import unquote, urlsplit

from itsdangerous import BadSignature, URLSafeTimedSerializer

from pipeline.errors import SettingsError
from pipeline.review.refusals import Refusal

LEAST_TOKEN, MOST_TOKEN = 16, 512
COOKIE_SECONDS = 7 * 86400
FREE_TRIES, LONGEST_WAIT_SECONDS, KEPT_ADDRESSES = 5, 60.0, 4096
_REVIEWER = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,64}")


class NotLoggedIn(Refusal):
    """Neither a cookie of this server nor its token came along."""

    kind = "login"


class TooMany(Refusal):
    """Too many wrong tokens; `wait_seconds` until the next may be tried."""

    kind = "too_many"
    wait_seconds: float = 0.0


class Foreign(Refusal):
    """Asked for under another name, or by a page of somebody else."""

    kind = "foreign"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host; a name counts only if it is `localhost`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def the_token(host: str, token_file: Path | None, from_environment: str | None) -> tuple[str, bool]:
    """The token that reviewers log in with, and whether it was made just now.

    Raises: SettingsError for a file without a token, one that is too short, or none for an address that others reach.
    """
    if token_file is not None:
        try:
            given: str | None = token_file.expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"a token in {token_file}", str(error), "write one into the file") from error
        where = f"in {token_file}"
    else:
        given, where = from_environment and from_environment.strip(), "in $MASKSIEVE_REVIEW_TOKEN"
    if given is None or (not given and token_file is None):
        if not is_loopback(host):
            step = "give one with --token-file or $MASKSIEVE_REVIEW_TOKEN, or listen on 127.0.0.1"
            raise SettingsError(f"a token, because {host} can be reached from elsewhere", "none", step)
        return secrets.token_urlsafe(24), True
    if not LEAST_TOKEN <= len(given) <= MOST_TOKEN or not given.isascii() or not given.isprintable() or " " in given:
        expected = f"a token of {LEAST_TOKEN} to {MOST_TOKEN} printable characters without spaces {where}"
        raise SettingsError(expected, f"{len(given)} characters", "make one: openssl rand -hex 24")
    return given, False


def reviewer_name(name: str) -> str:
    """A reviewer's name as it is kept. Raises NotLoggedIn for none, or one that cannot be written down."""
    name = name.strip()
    if not _REVIEWER.fullmatch(name):
        raise NotLoggedIn(
            "a reviewer's name of 1 to 64 characters", "none" if not name else "another", "say who you are"
        )
    return name


class Brake:
    """Wrong tokens by address: after some free ones each makes the next wait twice as long, up to a minute."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._lock = now, threading.Lock()
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raises TooMany while an address has to wait, whatever it brings."""
        with self._lock:
            wait = self._wrong.get(address, (0, 0.0))[1] - self._now()
        if wait > 0:
            error = TooMany("fewer wrong tokens", "too many", f"try again in {math.ceil(wait)} s")
            error.wait_seconds = wait
            raise error

    def wrong(self, address: str) -> None:
        """Count a wrong token."""
        with self._lock:
            count, until = self._wrong.pop(address, (0, 0.0))
            if count and self._now() - until > 10 * LONGEST_WAIT_SECONDS:
                count = 0
            count += 1
            wait = 0.0 if count < FREE_TRIES else min(2.0 ** (count - FREE_TRIES), LONGEST_WAIT_SECONDS)
            self._wrong[address] = count, self._now() + wait
            while len(self._wrong) > KEPT_ADDRESSES:
                self._wrong.popitem(last=False)

    def right(self, address: str) -> None:
        """Forget what an address tried."""
        with self._lock:
            self._wrong.pop(address, None)


class Access:
    """What a request has to bring along.

    Args:
        token: of the server.
        host: that it listens on; a name that it is asked for under has to be this, an address, or the machine's own.
        names: others, that a proxy in front of it goes by.
    """

    def __init__(
        self, token: str, host: str = "127.0.0.1", brake: Brake | None = None, names: Collection[str] = ()
    ) -> None:
        self._token, self.brake = token.encode(), brake or Brake()
        self._signer = URLSafeTimedSerializer(token, salt="masksieve-review")
        self._local = is_loopback(host)
        self._names = {"localhost", host.lower(), *(name.lower() for name in names)}
        if not self._local:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def log_in(self, token: str, reviewer: str, address: str) -> str:
        """The cookie of a reviewer who brings the token. Raises NotLoggedIn, TooMany."""
        self._require_token(token, address)
        return str(self._signer.dumps(reviewer_name(reviewer)))

    def reviewer(self, cookie: str | None, authorization: str | None, named: str | None, address: str) -> str:
        """Who asks.

        Args:
            cookie: of `log_in`.
            authorization: the header, `Bearer TOKEN`; named: X-Reviewer beside it, percent-encoded where not ASCII.
        Raises: NotLoggedIn, TooMany.
        """
        if authorization is not None:
            kind, _, token = authorization.partition(" ")
            if kind.lower() != "bearer":
                raise NotLoggedIn("Authorization: Bearer TOKEN", "another kind", "send the server's token")
            self._require_token(token.strip(), address)
            return reviewer_name(unquote(named or ""))
        if cookie is not None:
            try:
                return reviewer_name(str(self._signer.loads(cookie, max_age=COOKIE_SECONDS)))
            except BadSignature:
                pass
        raise NotLoggedIn("a login", "none that holds", "log in with the token that the server was started with")

    def _require_token(self, token: str, address: str) -> None:
        self.brake.check(address)
        if not hmac.compare_digest(token.encode("utf-8", "surrogatepass"), self._token):
            self.brake.wrong(address)
            raise NotLoggedIn("the server's token", "another one", "look where the server was started")
        self.brake.right(address)

    def require_own_name(self, host: str | None) -> None:
        """Raises Foreign if the server is asked for under a name that is not its own: a page elsewhere may have had its
        name point here."""
        try:
            name = urlsplit(f"//{host or ''}").hostname or ""
        except ValueError:
            name = ""
        try:
            address = ipaddress.ip_address(name)
            known = address.is_loopback or not self._local
        except ValueError:
            known = name in self._names
        if not known:
            raise Foreign(
                "to be asked for by its own name",
                "another Host",
                "open it at the address it printed, or serve it with --name",
            )

    @staticmethod
    def require_own_page(origin: str | None, site: str | None, host: str | None) -> None:
        """Raises Foreign for something to do that a page of another origin asks for."""
        foreign = site not in (None, "same-origin", "none")
        if origin is not None:
            try:
                foreign = foreign or not host or urlsplit(origin).netloc.lower() != host.lower()
            except ValueError:
                foreign = True
        if foreign:
            raise Foreign("a request of the server's own page", "one of another origin", "open the page itself")
