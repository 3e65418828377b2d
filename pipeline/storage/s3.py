"""An S3 bucket as an object store, through s3fs; conditional writes where the server knows them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.errors import DiskSpaceError, StorageError

if TYPE_CHECKING:
    from pipeline.settings import StorageSettings

SINGLE_PUT_BYTES = 64 * 2**20
"""Up to here one PUT, which can be conditional; larger files go in parts, which can't."""


class S3Backend:
    """Objects of one bucket below a prefix. A PUT is atomic by itself, and so is the end of a multipart upload."""

    def __init__(self, bucket: str, prefix: str, settings: StorageSettings | None) -> None:
        import s3fs

        self.bucket, self.prefix = bucket, prefix
        client = {
            "endpoint_url": settings.endpoint_url if settings else None,
            "region_name": settings.region if settings else None,
        }
        endpoint = client["endpoint_url"] or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self.no_conditions = False
        self.identity = f"{endpoint or 'aws'}|s3://{bucket}/{prefix}"
        secrets = {
            "key": settings.access_key_id if settings else None,
            "secret": settings.secret_access_key if settings else None,
            "token": settings.session_token if settings else None,
        }
        self.fs = s3fs.S3FileSystem(
            **{name: value.get_secret_value() for name, value in secrets.items() if value is not None},
            client_kwargs={name: value for name, value in client.items() if value is not None},
            # Checksums in trailers are new; servers that are not AWS often refuse them.
            config_kwargs={
                "connect_timeout": 10,
                "retries": {"max_attempts": 3},
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def uri(self, key: str) -> str:
        """`s3://bucket/prefix/key`."""
        return f"s3://{self._path(key)}"

    def path(self, key: str) -> Path | None:
        """Nothing: the object is not on this machine."""
        return None

    def put(self, key: str, source: Path | bytes) -> None:
        """One PUT, or a multipart upload for a large file."""
        if isinstance(source, Path) and source.stat().st_size > SINGLE_PUT_BYTES:
            self.fs.put_file(str(source), self._path(key))
        else:
            self._put_object(key, source)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """PUT with `If-None-Match: *`. A server that does not know it overwrites: see `probe_conditional_put`."""
        return self._conditional(key, data, IfNoneMatch="*")

    def replace(self, key: str, source: Path | bytes, version: str | None) -> bool:
        """PUT with `If-Match`, after a look at the version, for servers and sizes that ignore the condition."""
        if self.version(key) != version:
            return False
        if isinstance(source, Path) and source.stat().st_size > SINGLE_PUT_BYTES:
            self.put(key, source)
            return True
        if version is None:
            return self._conditional(key, source, IfNoneMatch="*")
        return self._conditional(key, source, IfMatch=version)

    def version(self, key: str) -> str | None:
        """The ETag; None if there is no such object."""
        try:
            head = self.fs.call_s3("head_object", Bucket=self.bucket, Key=self._key(key))
        except FileNotFoundError:
            return None
        return str(head["ETag"])

    def open(self, key: str) -> BinaryIO:
        """Open for reading, random access with little read-ahead."""
        file: BinaryIO = self.fs.open(self._path(key), "rb", block_size=2**20, cache_type="readahead")
        return file

    def list(self, prefix: str) -> list[str]:
        """Keys below a folder prefix."""
        root = self._path("")
        found = self.fs.find(self._path(prefix))
        return [path[len(root) :] for path in found if path.startswith(root) and not path.endswith("/")]

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        self.fs.call_s3("delete_object", Bucket=self.bucket, Key=self._key(key))

    def error(self, error: Exception, doing: str, uri: str) -> StorageError:
        """The typed error of an exception."""
        name = type(error).__name__
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskSpaceError(f"room on this machine to {doing} {uri}", "a full disk", "set output.scratch_dir")
        if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
            step = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            return StorageError(f"credentials to {doing} {uri}", "none", step)
        if isinstance(error, PermissionError):
            return StorageError(
                f"leave to {doing} {uri}", f"refused ({error})", "check the keys and the bucket's policy"
            )
        if isinstance(error, FileNotFoundError):
            step = f"check the path, and that the bucket {self.bucket} exists"
            return StorageError(f"an object or bucket to {doing} at {uri}", "nothing there", step)
        reason = " ".join(str(error).split()) or name
        return StorageError(f"to {doing} {uri}", reason, "check AWS_ENDPOINT_URL, the region and the network")

    def _conditional(self, key: str, source: Path | bytes, **condition: str) -> bool:
        if not self.no_conditions:
            try:
                self._put_object(key, source, **condition)
            except Exception as error:
                if _refused_by_condition(error):
                    return False
                if not _not_implemented(error):
                    raise
                self.no_conditions = True  # some servers answer 501 instead of ignoring the condition
            else:
                return True
        if self.version(key) != condition.get("IfMatch"):
            return False
        self._put_object(key, source)
        return True

    def _put_object(self, key: str, source: Path | bytes, **condition: str) -> None:
        data = source if isinstance(source, bytes) else source.read_bytes()
        self.fs.call_s3("put_object", Bucket=self.bucket, Key=self._key(key), Body=data, **condition)

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _path(self, key: str) -> str:
        return f"{self.bucket}/{self._key(key)}"


def _answer(error: BaseException | None) -> tuple[int | None, str | None]:
    """HTTP status and S3 code of an error, under whatever exception s3fs made of it."""
    while error is not None:
        response: Any = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, response.get("Error", {}).get("Code")
        error = error.__cause__
    return None, None


def _refused_by_condition(error: BaseException) -> bool:
    """Whether the server said 412 or 409: a rival was quicker."""
    status, code = _answer(error)
    return status in (409, 412) or code in ("PreconditionFailed", "ConditionalRequestConflict")


def _not_implemented(error: BaseException) -> bool:
    """Whether the server said that it knows no conditional writes."""
    status, code = _answer(error)
    return status == 501 or code == "NotImplemented"
