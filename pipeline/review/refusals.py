"""What a queue refuses, by kind: who asks over whatever protocol can tell what to do next."""

from __future__ import annotations

from typing import ClassVar

from pipeline.review.answers import ReviewError


class Refusal(ReviewError):
    """Something that was asked of a queue and is not done; `kind` tells programs why."""

    kind: ClassVar[str] = "refused"


class NotFound(Refusal):
    """An item or answer that the queue does not know."""

    kind = "not_found"


class LeaseLost(Refusal):
    """A lease that ran out, was given back, or is somebody else's. Claiming the item again may help."""

    kind = "lease_lost"


class Conflict(Refusal):
    """Something else was settled before: the item is answered or withdrawn, the answer is written out already."""

    kind = "conflict"


class BudgetSpent(Refusal):
    """What people answer in a day is used up."""

    kind = "budget_spent"


class Malformed(Refusal):
    """An answer that cannot be one to its item."""

    kind = "malformed"
