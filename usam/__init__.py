"""USAM: how wrong each SAM2 mask probably is, and why (Kaiser et al., ICML 2025)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from usam.capture import TokenCapture

__all__ = ["attach"]


def attach(model: Any, *, hold: int = 256) -> TokenCapture:
    """Watch a model's mask decoder: tokens, the mask that was really chosen, the candidates.

    >>> with usam.attach(model) as tokens:
    ...     predictor.add_new_points_or_box(state, 0, 1, points=points, labels=labels)
    ...     call = tokens.take()
    >>> bank(call.pairs(bank.mask_token_offset))

    Args:
        model: a sam2 `SAM2Base` or `SAM2VideoPredictor`, or a predictor that holds one as `.model`. It gives the same
            bits inside and outside of the context, and is as it was afterwards.
        hold: decoder calls that are held between two `take_all`.
    Returns: a context, see `usam.capture.TokenCapture`.
    Raises:  HeadError for a model without SAM2's mask decoder.
    """
    from usam.capture import TokenCapture

    return TokenCapture(model, hold=hold)
