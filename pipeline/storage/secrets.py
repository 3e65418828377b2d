"""Keys of stores are refused in addresses and blotted out of what is logged or raised."""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import StorageError

if TYPE_CHECKING:
    from pydantic import SecretStr

HIDDEN = "***"
SHORTEST = 6  # a shorter secret is a word that may stand anywhere
_NAMES = r"[\w.-]*(?:key|token|sig|signature|secret|password|passwd|pwd|credential)[\w.-]*"
_QUERY = re.compile(rf"([?&;]{_NAMES}=)[^&;\s'\"]+", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^\s/@]+@")
_VARIABLE = re.compile(r"(?:_KEY|_KEY_ID|_TOKEN|_SECRET|_PASSWORD|_CONNECTION_STRING|PGPASSWORD)$")
_known: set[str] = set()


def remember(secrets: Iterable[SecretStr | str | None]) -> None:
    """Let `masked` blot these out from now on."""
    for secret in secrets:
        value = secret if isinstance(secret, str) or secret is None else secret.get_secret_value()
        if value and len(value) >= SHORTEST:
            _known.add(value)


def masked(text: str) -> str:
    """The text without keys: those that settings and the environment hold, and what looks like one in an address."""
    from urllib.parse import quote

    held = {value for name, value in os.environ.items() if _VARIABLE.search(name) and len(value) >= SHORTEST}
    for value in sorted(_known | held, key=len, reverse=True):
        for spelled in {value, quote(value, safe="")}:
            text = text.replace(spelled, HIDDEN)
    return _USERINFO.sub(f"{HIDDEN}@", _QUERY.sub(rf"\1{HIDDEN}", text))


@contextmanager
def hushed() -> Iterator[None]:
    """Let an error of the block say no key, wherever its message and traceback go: a server keeps them.

    Raises: the error, without what caused it if that quotes a key; a RuntimeError in its place if it can't be mended.
    """
    try:
        yield
    except Exception as error:
        error.args = tuple(masked(one) if isinstance(one, str) else one for one in error.args)
        vars(error).update({name: masked(value) for name, value in vars(error).items() if isinstance(value, str)})
        if (told := str(error)) != masked(told):
            raise RuntimeError(f"{type(error).__name__}: {masked(told)}") from None
        if (told := "".join(traceback.format_exception(error))) != masked(told):
            raise error from None
        raise


class _Blotting(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Let a record pass, without keys."""
        record.msg, record.args = masked(record.getMessage()), ()
        return True


def blot_out(*loggers: str) -> None:
    """Mask what other libraries log: at DEBUG, botocore tells of requests with their session tokens."""
    for name in loggers:
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Blotting) for one in logger.filters):
            logger.addFilter(_Blotting())


def checked_url(url: str) -> str:
    """The address itself.

    Raises: StorageError, which does not repeat it, if it holds a password or a key.
    """
    scheme, found, rest = url.partition("://")
    place = rest.partition("/")[0]
    bucket = scheme in ("s3", "s3a", "gs", "gcs", "az") and not place.startswith("arn:")
    user = rest.rpartition("@")[0] if ":" in place else place.rpartition("@")[0]  # a secret may hold a slash
    if found and ((bucket and (":" in place or "@" in place)) or ":" in user or _QUERY.search(url)):
        step = "give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or as the driver of the store takes them"
        raise StorageError("an address of a store without keys", f"{scheme}://{HIDDEN}", step)
    return url
