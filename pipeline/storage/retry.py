"""Passing errors of a store are waited out with growing random pauses, within a time budget; lasting ones are not."""

from __future__ import annotations

import errno
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.errors import MasksieveError
from pipeline.storage.secrets import masked

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
TELL_AFTER_SECONDS = 5.0
LAST_TRY_SECONDS = 1.0
"""A try that begins at the very end of a budget gets at least so long."""

PASSING_STATUSES = frozenset((408, 425, 429))  # and all from 500 on, but 501
PASSING_CODES = frozenset((
    "SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "InternalError", "ServiceUnavailable", "Throttling",
    "ThrottlingException", "OperationAborted", "ConditionalRequestConflict", "BadDigest", "XAmzContentSHA256Mismatch",
    "IncompleteBody",
))  # fmt: skip
PASSING_ERRNOS = frozenset((
    errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH,
    errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.EAGAIN, errno.EBUSY, errno.EINTR,
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ESHUTDOWN,
))  # fmt: skip
PASSING_NAMES = frozenset((
    "ConnectionError", "HTTPClientError", "IncompleteReadError", "ResponseParserError", "ClientConnectionError",
    "ClientPayloadError", "SSHException", "ServiceRequestError", "ServiceResponseError", "TransportError",
))  # fmt: skip
"""Classes of HTTP and SSH libraries for what went wrong on the way, by name: they need not be installed."""
LASTING = (
    FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError, NotImplementedError,
    MasksieveError, ssl.SSLCertVerificationError,
)  # fmt: skip

T = TypeVar("T")


class BrokenConnection(Exception):
    """The bytes stopped before their end; reading on from there may help."""


class DamagedUpload(BrokenConnection):
    """The store took other bytes than were sent, as the version `tag`."""

    def __init__(self, tag: str) -> None:
        super().__init__("the store took other bytes than were sent")
        self.tag = tag


class Misread(Exception):
    """What came is not the object that was described; reading it anew may help."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected, self.got = expected, got


class Patience:
    """The time budget of one operation on a store.

    Args:
        retry_seconds: how long passing errors are waited out; 0: not at all.
        stall_seconds: how long one request may give no sign of life.
    """

    def __init__(self, retry_seconds: float, stall_seconds: float) -> None:
        self.retry_seconds, self._stall_seconds = retry_seconds, stall_seconds
        self.renew()

    def renew(self) -> None:
        """The operation got on: the budget begins anew."""
        self.breaks = 0
        self._begun = time.monotonic()
        self._told = False

    def stall_seconds(self) -> float:
        """How long the next request may give no sign of life: the whole budget ends not much later than it says."""
        if not self.breaks:
            return self._stall_seconds
        left = self._begun + self.retry_seconds - time.monotonic()
        return min(self._stall_seconds, max(left, LAST_TRY_SECONDS))

    def pause(self, error: Exception, stop: threading.Event | None = None) -> None:
        """Wait before the next try, between nothing and twice as long at most as the time before.

        Args:   stop: set by another thread to end the wait.
        Raises: the error, once the budget is spent.
        """
        self.breaks += 1
        waited = time.monotonic() - self._begun
        if waited >= self.retry_seconds:
            raise error
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(self.breaks - 1, 16))
        seconds = min(random.uniform(0, longest), self.retry_seconds - waited)
        late = waited > TELL_AFTER_SECONDS and not self._told
        self._told |= late
        log.log(logging.WARNING if late else logging.DEBUG, "a store fails, and is tried again: %s", reason(error))
        if stop is None:
            time.sleep(seconds)
        else:
            stop.wait(seconds)

    def insist(self, work: Callable[[], T]) -> T:
        """What a call gives, made again after passing errors. Raises the call's error: a lasting one at once."""
        while True:
            try:
                return work()
            except Exception as error:
                if not passing(error):
                    raise
                self.pause(error)


def passing(error: BaseException) -> bool:
    """Whether a request failed on its way, or the server said that it will do better later."""
    if isinstance(error, BrokenConnection) or type(error).__name__ == "ClientPayloadError":
        return True  # aiohttp gives a body that broke off the code 400 of its own making
    status, code = answer(error)
    if code in PASSING_CODES:
        return True
    if isinstance(error, LASTING) or isinstance(error.__cause__, LASTING):
        return False
    if status is not None:
        return status in PASSING_STATUSES or (status >= 500 and status != 501)
    names = {kind.__name__ for kind in type(error).__mro__}
    if any("Auth" in name or "HostKey" in name for name in names):
        return False
    if isinstance(error, OSError):
        return error.errno is None or error.errno in PASSING_ERRNOS
    return isinstance(error, EOFError) or bool(names & PASSING_NAMES)


def answer(error: BaseException | None) -> tuple[int | None, str | None]:
    """HTTP status and S3 code of an error, under whatever exception a library made of it."""
    while error is not None:
        response: Any = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, response.get("Error", {}).get("Code")
        for name in ("status_code", "status", "code"):
            status = getattr(error, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status, None
        error = error.__cause__
    return None, None


def within(seconds: float, work: Callable[[], T]) -> T:
    """What a call gives that may hang; after so long it is left to itself. Raises BrokenConnection then."""
    got: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            got.append(work())
        except BaseException as error:  # noqa: BLE001 - raised where the call was made
            failed.append(error)

    thread = threading.Thread(target=run, name="masksieve-store", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise BrokenConnection(f"nothing for {seconds:g} s")
    if failed:
        raise failed[0]
    return got[0]


def reason(error: BaseException) -> str:
    """The text of an error on one line, without keys that a library may have put there; its class if it has none."""
    return masked(" ".join(str(error).split())) or type(error).__name__
