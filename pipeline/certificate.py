"""Certificates: the evidence behind thresholds, as a JSON document of an output, and whether it holds for a video.

A certificate is named by its content, so nobody can change one; it is voided by a second document beside it. It holds
for masks of the same model, heads and settings, decided by the same rules at thresholds that its walk passed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from pipeline.certificate_parts import (
    ErrorRate,
    Group,
    IouMap,
    Match,
    MeanIou,
    ModelMark,
    Part,
    Process,
    ReviewLoad,
    Truth,
)  # fmt: skip
from pipeline.errors import MasksieveError, StorageError, UnavailableError
from pipeline.policy import Policy
from pipeline.storage.objects import ObjectStore

VERSION = 1

FREE_FIELDS = frozenset({
    "name", "audit_rate", "seed", "certificate", "hold_above_uncertainty", "review_stretches_per_video",
    "max_uncertainty", "groups",
})  # fmt: skip
"""Fields of a policy that may differ from the certified one: they accept no row that the thresholds would not, and the
thresholds are compared by themselves."""

SIDECARS = frozenset({"candidates", "tokens", "decoder"})
"""Parts of the facts' configuration that change no mask; the decoder is the file's own, and compared by itself."""

_ID = re.compile("[0-9a-f]{16}")
_KEY = re.compile(rf"certificates/({_ID.pattern})\.json")


class CertificateError(MasksieveError):
    """A certificate that is missing, damaged, or changed since it was issued."""


class Certificate(Part):
    """Evidence behind thresholds.

    Args:
        id: first 16 hex digits of the SHA-256 of everything else.
        status: certified; over_budget (certified too, but people cannot review the rest: the overflow is held);
            not_certified (the truth was not enough: nothing may be accepted by it).
        promise: what holds of accepted rows.
        confidence: with which probability, over draws of labelled videos, all groups keep it.
        method: the test of a threshold, see `usam.certify.certify`.
        estimand: whether every accepted row counts alike, or every video.
        max_rows_per_video: more rows than this of one video count as this many.
        start_coverage: coverage at which the walk began, chosen before the truth was looked at.
        policy: as issued, with `certificate` null.
        groups: as the policy has them, in its order; the last one matches every row.
        processes: what made the facts, one per model.
        mix: what the sources looked like, see `usam.drift`; None without.
        valid_until: nobody looked at newer videos, so it ends.
        software: versions that computed it.
    """

    version: int = VERSION
    id: str = ""
    status: Literal["certified", "over_budget", "not_certified"]
    promise: Annotated[ErrorRate | MeanIou, Field(discriminator="kind")]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    unit: Literal["video"] = "video"
    method: Literal["clustered", "betting"] = "clustered"
    estimand: Literal["rows", "videos"]
    max_rows_per_video: Annotated[int, Field(ge=1)]
    start_coverage: Annotated[float, Field(gt=0, le=1)]
    policy: dict[str, Any]
    groups: tuple[Group, ...]
    processes: tuple[Process, ...]
    truth: Truth
    iou_map: IouMap | None = None
    mix: dict[str, Any] | None = None
    review: ReviewLoad
    issued_at: AwareDatetime
    valid_until: AwareDatetime
    software: dict[str, str]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.groups or not self.groups[-1].match.anything or not self.processes:
            raise ValueError("processes, and groups of which the last matches every row")
        if (self.status == "not_certified") != all(one.threshold is None for one in self.groups):
            raise ValueError("thresholds, or the status not_certified")
        return self

    @classmethod
    def issue(cls, **values: Any) -> Certificate:
        """A certificate with its id, from the other fields."""
        draft = cls(**values)
        return draft.model_copy(update={"id": _digest(draft.model_dump(mode="json"))})


class Evidence(NamedTuple):
    """Whether a threshold is certified, and the words for it: until when and by what, or why not."""

    certified: bool
    text: str

    @property
    def brief(self) -> str:
        """The words for a picture: of a policy that names no certificate, just "uncertified"."""
        return "uncertified" if self == UNCERTIFIED else self.text


UNCERTIFIED = Evidence(False, "uncertified: the threshold rests on no evidence yet")
"""Of a policy that names no certificate."""


class Standing(NamedTuple):
    """How a certificate stands: `valid`, `expired`, `void` or `not_certified`, and what a person should know of it."""

    certificate: Certificate
    state: Literal["valid", "expired", "void", "not_certified"]
    text: str


def certificate_key(certificate_id: str) -> str:
    """Where an output keeps a certificate."""
    return f"certificates/{certificate_id}.json"


def write_certificate(store: ObjectStore, certificate: Certificate) -> str:
    """Put a certificate into an output; again changes nothing.

    Returns: where it lies.
    """
    key = certificate_key(certificate.id)
    store.put_if_absent(key, certificate.model_dump_json(indent=1).encode())
    return store.uri(key)


def read_certificate(store: ObjectStore, certificate_id: str) -> Certificate:
    """A certificate of an output.

    Raises: CertificateError if there is none by this id, or its content is not what was issued.
    """
    step = "name one that `masksieve status` lists, or run `masksieve calibrate`"
    if not _ID.fullmatch(certificate_id):
        raise CertificateError("a certificate's id, 16 hex digits", repr(certificate_id), step)
    key = certificate_key(certificate_id)
    try:
        body = json.loads(store.get(key))
        if body.get("id") != certificate_id or _digest(body) != certificate_id:
            raise ValueError("its content was changed")
        return Certificate.model_validate(body)
    except UnavailableError:
        raise
    except StorageError as error:
        raise CertificateError(f"a certificate {certificate_id} in {store.url}", "none", step) from error
    except (ValueError, AttributeError) as error:  # of pydantic too
        got = f"{store.uri(key)}: {' '.join(str(error).split())[:160]}"
        raise CertificateError("a certificate as it was issued", got, "restore the file, or calibrate again") from error


def void_certificate(store: ObjectStore, certificate_id: str, reason: str) -> None:
    """Declare that a certificate holds no longer; the first reason stays.

    Args:    reason: a few words without a full stop, such as "the audit broke the promise".
    """
    if void_reason(store, certificate_id) is not None:
        return  # not every store refuses the second of two writers
    body = {"certificate": certificate_id, "reason": reason, "at": datetime.now(UTC).isoformat()}
    store.put_if_absent(_void_key(certificate_id), json.dumps(body, indent=1).encode())


def void_reason(store: ObjectStore, certificate_id: str) -> str | None:
    """Why a certificate was voided; None if it was not. A note that cannot be read voids it too."""
    if not store.exists(_void_key(certificate_id)):
        return None
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(store.get(_void_key(certificate_id)))["reason"])
    return "the reason cannot be read"


def list_certificates(store: ObjectStore) -> list[Certificate]:
    """The certificates of an output that can be read, oldest first."""
    found = []
    for key in store.list("certificates/"):
        if (named := _KEY.fullmatch(key)) is not None:
            with suppress(CertificateError):
                found.append(read_certificate(store, named[1]))
    return sorted(found, key=lambda one: (one.issued_at, one.id))


def standings(store: ObjectStore, now: datetime | None = None) -> list[Standing]:
    """How every certificate of an output stands, oldest first."""
    return [_standing(one, void_reason(store, one.id), now or datetime.now(UTC)) for one in list_certificates(store)]


def _standing(one: Certificate, void: str | None, now: datetime) -> Standing:
    day = f"{one.valid_until:%Y-%m-%d}"
    if void is not None:
        return Standing(one, "void", f"void: {void}")
    if one.status == "not_certified":
        return Standing(one, "not_certified", "certifies no threshold")
    if now >= one.valid_until:
        return Standing(one, "expired", f"expired on {day}")
    over = ", over the review budget" if one.status == "over_budget" else ""
    return Standing(one, "valid", f"valid until {day}{over}")


def process_of(metadata: Mapping[str, Any]) -> Process | None:
    """What made the facts whose metadata these are; None if they do not say."""
    model, config = metadata.get("model"), metadata.get("config")
    if not isinstance(model, Mapping) or not isinstance(config, Mapping):
        return None
    decoder = config.get("decoder")
    return Process(
        model=ModelMark(name=str(model.get("name")), sha256=str(model.get("sha256"))),
        heads_sha256=metadata.get("heads_sha256"),
        config={name: value for name, value in sorted(config.items()) if name not in SIDECARS},
        decoders=() if decoder is None else (str(decoder),),
    )


def difference(process: Process, certified: Sequence[Process]) -> str | None:
    """How what made some facts differs from all that is certified, in a few words; None if one is the same."""
    alike = list(certified)
    if not any(one.model == process.model for one in alike):
        return f"another model than {process.model.name} {process.model.sha256[:12]}"
    alike = [one for one in alike if one.model == process.model]
    if not any(one.heads_sha256 == process.heads_sha256 for one in alike):
        return "other heads"
    alike = [one for one in alike if one.heads_sha256 == process.heads_sha256]
    if not any(one.config == process.config for one in alike):
        there = alike[0].config
        names = sorted(one for one in {*there, *process.config} if there.get(one) != process.config.get(one))
        return f"other settings ({', '.join(names)})"
    decoders = {name for one in alike for name in one.decoders}
    if not set(process.decoders) <= decoders:
        return f"videos that another decoder read than {', '.join(process.decoders)}"
    return None


def evidence(
    policy: Policy | Mapping[str, Any],
    certificate: Certificate | None,
    void: str | None,
    metadata: Mapping[str, Any],
    now: datetime | None = None,
) -> Evidence:
    """Whether the thresholds of a policy are certified for some facts.

    Args:    policy: as the facts were decided by, or as a file's metadata tell it.
             certificate: the one that the policy names; None if there is none to be had.
             void: why it was voided, None if it was not.
             metadata: of the facts, or of labels made of them: model, heads_sha256, config.
             now: the time to judge by; None is now.
    """
    try:
        rules = policy if isinstance(policy, Policy) else Policy.model_validate(dict(policy))
    except ValidationError:
        return UNCERTIFIED
    if rules.certificate is None:
        return UNCERTIFIED
    short = rules.certificate[:12]
    if certificate is None or certificate.id != rules.certificate:
        return Evidence(False, f"uncertified: there is no certificate {short} in this output")
    why = _fault(rules, certificate, void, metadata, now or datetime.now(UTC))
    if why is not None:
        return Evidence(False, f"uncertified: certificate {short} {why}")
    return Evidence(True, f"certified until {certificate.valid_until:%Y-%m-%d} by {short}")


def find_evidence(
    store: ObjectStore, policy: Policy | Mapping[str, Any], metadata: Mapping[str, Any], now: datetime | None = None
) -> Evidence:
    """`evidence` by the certificate that the policy names in this output.

    Raises: UnavailableError if the store cannot be reached.
    """
    named = policy.certificate if isinstance(policy, Policy) else policy.get("certificate")
    if named is None:
        return evidence(policy, None, None, metadata, now)
    try:
        certificate = read_certificate(store, str(named))
    except CertificateError:
        return evidence(policy, None, None, metadata, now)
    return evidence(policy, certificate, void_reason(store, certificate.id), metadata, now)


def thresholds(policy: Policy) -> list[tuple[Match, float | None]]:
    """The groups of a policy with their thresholds, in order; the last one matches every row."""
    found: list[tuple[Match, float | None]] = []
    for group in getattr(policy, "groups", ()):
        found.append((Match(source=group.source, label=group.label, model=group.model), group.max_uncertainty))
        if found[-1][0].anything:
            return found
    return [*found, (Match(), policy.max_uncertainty)]


def same_rules(policy: Policy, certified: Policy) -> bool:
    """Whether two policies accept the same rows, but for their thresholds and groups."""
    mine, theirs = (one.model_dump(mode="json", exclude=set(FREE_FIELDS)) for one in (policy, certified))
    return mine == theirs


def _fault(
    policy: Policy, certificate: Certificate, void: str | None, metadata: Mapping[str, Any], now: datetime
) -> str | None:
    """Why a certificate does not hold; None if it does."""
    if void is not None:
        return f"was voided: {void}"
    if now >= certificate.valid_until:
        return f"has expired on {certificate.valid_until:%Y-%m-%d}"
    if certificate.status == "not_certified":
        return "found too little evidence for any threshold"
    process = process_of(metadata)
    if process is None:
        return "is for facts that say what made them"
    if (other := difference(process, certificate.processes)) is not None:
        return f"is for {other}"
    try:
        certified = Policy.model_validate(certificate.policy)
    except ValidationError:
        return "is of other rules"
    if not same_rules(policy, certified):
        return "is of other rules"
    asked = thresholds(policy)
    if [match for match, _ in asked] != [group.match for group in certificate.groups]:
        return "is of other groups"
    for (match, threshold), group in zip(asked, certificate.groups, strict=True):
        if threshold is not None and threshold not in group.passed:
            most = "none" if not group.passed else f"{group.passed[0]:g} to {group.passed[-1]:g}"
            where = "" if match.anything else f" for {match}"
            return f"is for other thresholds ({most}{where}, not {threshold:g})"
    return None


def _digest(body: Mapping[str, Any]) -> str:
    """The id of a certificate: first 16 hex digits of the SHA-256 of its canonical JSON without the id."""
    text = json.dumps({name: value for name, value in body.items() if name != "id"}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _void_key(certificate_id: str) -> str:
    return f"certificates/{certificate_id}.void.json"
