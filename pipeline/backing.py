"""What stands behind a policy for some facts: whether its certificate holds, and its map to calibrated IoU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.certificate import difference, evidence, process_of, read_certificate, void_reason
from pipeline.policy import Policy
from pipeline.storage.objects import ObjectStore
from usam.isotonic import Isotonic


@dataclass(frozen=True)
class Backing:
    """What a file of labels says about its thresholds.

    Args:
        certified: whether evidence stood behind them when the labels were derived.
        text: the same in words, without the time of the derivation: equal labels stay equal bytes. None where no
            certificate was named.
        calibrated: from predicted IoU to calibrated IoU; None where no map was fitted on such facts.
    """

    certified: bool = False
    text: str | None = None
    calibrated: Isotonic | None = None


def require_certificate(store: ObjectStore, policy: Policy) -> None:
    """Find out before the work that the output lacks the certificate which the policy names.

    Raises: CertificateError.
    """
    if policy.certificate is not None:
        read_certificate(store, policy.certificate)


def backing(store: ObjectStore, policy: Policy, facts: Mapping[str, Any]) -> Backing:
    """Read the certificate that a policy names, and hold it against what made some facts.

    Args:   facts: the metadata of their file.
    Raises: CertificateError if the output has no such certificate, or it was changed.
    """
    if policy.certificate is None:
        return Backing()
    certificate = read_certificate(store, policy.certificate)
    found = evidence(policy, certificate, void_reason(store, certificate.id), facts)
    process = process_of(facts)
    fits = process is not None and difference(process, certificate.processes) is None
    calibrated = certificate.iou_map.isotonic() if fits and certificate.iou_map is not None else None
    return Backing(found.certified, f"certified by {certificate.id}" if found.certified else found.text, calibrated)
