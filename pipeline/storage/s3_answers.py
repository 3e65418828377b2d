"""What an S3 server's answers say: checksums that are of the bytes, and refusals by a condition."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any

from pipeline.storage.retry import PASSING_CODES, answer


def md5_hex(data: bytes) -> str:
    """MD5 in hex, as an ETag has it."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def content_md5(md5: str) -> str:
    """MD5 as the header Content-MD5 has it: the server refuses a body that was damaged on the way."""
    return base64.b64encode(bytes.fromhex(md5)).decode()


def md5_of(head: dict[str, Any], bucket: str) -> str | None:
    """The MD5 of the bytes, in hex, if the ETag is one.

    It is not for an upload in parts (a dash), under a key of KMS or the customer's, and in directory buckets.
    Source: Amazon S3 API reference, `Object`, ETag.
    """
    tag = str(head.get("ETag", "")).strip('"')
    hidden = head.get("SSECustomerAlgorithm") or str(head.get("ServerSideEncryption", "")).startswith("aws:kms")
    if hidden or bucket.endswith("--x-s3") or not re.fullmatch(r"[0-9a-f]{32}", tag):
        return None
    return tag


def sha256_of(head: dict[str, Any]) -> str | None:
    """The SHA-256 of the bytes, in hex, if the object was stored with one; one of parts (a dash) is of no use here."""
    try:
        digest = base64.b64decode(str(head.get("ChecksumSHA256", "")), validate=True)
    except binascii.Error:
        return None
    whole = head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    return digest.hex() if whole and len(digest) == 32 else None


def refused_by_condition(error: BaseException) -> bool:
    """Whether the server said 412, or 409 for good: a rival was quicker."""
    status, code = answer(error)
    return status == 412 or code == "PreconditionFailed" or (status == 409 and code not in PASSING_CODES)


def not_implemented(error: BaseException) -> bool:
    """Whether the server said that it knows no conditional writes."""
    status, code = answer(error)
    return status == 501 or code == "NotImplemented"
