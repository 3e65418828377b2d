"""Keys of stores: refused in addresses, and in no error, log or repr, wherever they were given."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StorageError
from pipeline.settings import StorageSettings
from pipeline.storage import secrets
from pipeline.storage.objects import ObjectStore
from pipeline.storage.retry import reason
from pipeline.storage.secrets import hushed, masked

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=@:-_."
keys = st.text(ALPHABET, min_size=12, max_size=40).filter(lambda one: not set(one) <= set("./:@-_"))


@contextmanager
def everything_said() -> Iterator[list[str]]:
    """What the block logs, at any level, by whatever library."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    root, listener = logging.getLogger(), Listener()
    level = root.level
    root.addHandler(listener)
    root.setLevel(logging.DEBUG)
    try:
        yield said
    finally:
        root.removeHandler(listener)
        root.setLevel(level)


@given(
    key=st.from_regex(r"[A-Za-z0-9]{3,20}", fullmatch=True),
    secret=keys,
    scheme=st.sampled_from(["s3", "gs", "sftp", "https", "memory"]),
)
def test_an_address_with_keys_is_refused_and_not_repeated(key: str, secret: str, scheme: str) -> None:
    with pytest.raises(StorageError) as told:
        ObjectStore(f"{scheme}://{key}:{secret}@bucket/prefix")
    assert secret not in str(told.value)
    assert told.value.__cause__ is None


@pytest.mark.parametrize(
    "url", ["az://box/x?sig=SECRETWORD", "s3://bucket/x?X-Amz-Signature=SECRETWORD", "sftp://me:SECRETWORD@host:22/x"]
)
def test_other_ways_to_put_a_key_into_an_address(url: str) -> None:
    with pytest.raises(StorageError, match="without keys") as told:
        ObjectStore(url)
    assert "SECRETWORD" not in str(told.value)


@pytest.mark.parametrize(
    "url", ["s3://bucket/at 10:30/me@home", "memory://x/a:b@c", "s3://arn:aws:s3:eu:1:accesspoint/x"]
)
def test_an_address_without_keys_is_not_taken_for_one(url: str) -> None:
    assert ObjectStore(url).url == url


def test_an_endpoint_with_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = "http://me:SECRETWORD@127.0.0.1:9000"
    with pytest.raises(StorageError) as told:
        ObjectStore("s3://bucket", StorageSettings(endpoint_url=endpoint))
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError) as again:
        ObjectStore("s3://bucket")
    assert "SECRETWORD" not in f"{told.value} {again.value}"


def test_keys_of_settings_and_environment_are_said_nowhere(moto_s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "access_key_id": "AKIASETTINGSKEY",
        "secret_access_key": "settings/secret+word=",
        "session_token": "tok" * 9,
    }
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "environment/secret+word")
    hidden = [given["secret_access_key"], given["session_token"], "environment/secret+word"]
    with everything_said() as said:
        for settings in (
            moto_s3.settings(**given, retry_seconds=0.2),
            moto_s3.settings(**given, retry_seconds=0.2, endpoint_url="http://127.0.0.1:9"),
            StorageSettings(endpoint_url=moto_s3.endpoint_url, region="us-east-1"),
            StorageSettings(endpoint_url="http://127.0.0.1:9", region="us-east-1", retry_seconds=0.2),
        ):
            store = ObjectStore("s3://no-such-bucket", settings)
            said.append(f"{store!r} {settings!r} {store.identity}")
            for name, words in (("put_atomic", ("x", b"1")), ("get", ("x",)), ("capabilities", ())):
                with pytest.raises(StorageError) as told:
                    getattr(store, name)(*words)
                said.append(str(told.value))
    for secret in hidden:
        assert not [line for line in said if secret in line]


@given(secret=keys, before=st.text(max_size=20), after=st.text(max_size=20))
def test_what_a_library_says_is_masked(secret: str, before: str, after: str) -> None:
    known = set(secrets._known)
    try:
        secrets.remember([secret])
        told = masked(f"{before} {secret} {after}")
        assert secrets.HIDDEN in told
        assert secret not in told or secret in f"{before} {after}"
    finally:
        secrets._known.clear()
        secrets._known.update(known)


def test_addresses_in_errors_of_libraries_are_masked() -> None:
    error = OSError("cannot reach https://me:word@host:1/x?a=1&sig=abc&b=2")
    assert reason(error) == "cannot reach https://***@host:1/x?a=1&sig=***&b=2"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\..\\x", "a\0b", "a\nb", "a\x7fb", "./x", "a//b"])
def test_a_name_in_a_bucket_that_would_lead_elsewhere_is_refused_as_a_file(
    name: str, moto_s3: Any, tmp_path: Path
) -> None:
    """Whoever uploads names the objects, so a listing may hold anything."""
    import boto3

    bucket = moto_s3.new_bucket()
    login = {"aws_access_key_id": moto_s3.access_key_id, "aws_secret_access_key": moto_s3.secret_access_key}
    client = boto3.client("s3", endpoint_url=moto_s3.endpoint_url, region_name="us-east-1", **login)
    if name.isprintable() and ".." not in name and not name.startswith(("/", ".")) and "//" not in name:
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=name, Body=b"evil")
    store = ObjectStore(bucket, moto_s3.settings())
    (tmp_path / "in").mkdir()
    for key in {name, *store.list()}:
        folder = ObjectStore(tmp_path / "in")
        for one, work, more in (
            (store, "get_file", (tmp_path / "in" / "x",)), (store, "get", ()), (folder, "put_atomic", (b"evil",)),
            (folder, "path", ()),
        ):  # fmt: skip
            with pytest.raises(StorageError, match="relative key"):
                getattr(one, work)(key, *more)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("url", ["s3://bucket/../other", "s3://bucket/a/./b", "memory://a/../b", "s3://bucket/a\nb"])
def test_an_address_with_dot_parts_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match="dot parts"):
        ObjectStore(url)


@pytest.mark.parametrize(
    ("error", "cause", "kind"),
    [
        (RuntimeError("quotes secret-word-1"), None, RuntimeError),
        (OSError(5, "quotes secret-word-1"), None, RuntimeError),  # keeps its text elsewhere than in its arguments
        (StorageError("a store", "secret-word-1", "wait"), None, StorageError),
        (StorageError("a store", "none", "wait"), KeyError("secret-word-1"), StorageError),
    ],
)
def test_an_error_that_leaves_a_flow_is_hushed(
    error: Exception, cause: Exception | None, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-word-1")
    with pytest.raises(kind) as told, hushed():
        raise error from cause
    text = "".join(traceback.format_exception(told.value))
    assert "secret-word-1" not in text
    assert "secret-word-1" not in repr(vars(told.value))
    assert secrets.HIDDEN in text or cause is not None


def test_an_error_without_a_key_keeps_what_caused_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())  # those of test servers may be in the path of this file
    with pytest.raises(StorageError) as told, hushed():
        raise StorageError("a store", "none", "wait") from KeyError("x")
    assert isinstance(told.value.__cause__, KeyError)
