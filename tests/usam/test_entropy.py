"""Entropy and stability agree with values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from usam.entropy import logits_entropy, mask_weighted_entropy, stability
from usam.errors import ShapeError


def test_a_fair_coin_everywhere_is_one_bit() -> None:
    assert float(mask_weighted_entropy(torch.full((4, 4), 0.5))) == pytest.approx(1.0)


def test_a_certain_mask_is_no_bits() -> None:
    logits = torch.full((2, 8, 8), -1000.0)
    logits[:, 2:5, 2:5] = 1000.0
    assert logits_entropy(logits).tolist() == pytest.approx([0.0, 0.0], abs=1e-3)


def test_the_map_weighs_its_own_entropy() -> None:
    prob = torch.tensor([[0.5, 0.25]])
    entropy_of_quarter = 0.811278
    assert float(mask_weighted_entropy(prob)) == pytest.approx((0.5 * 1 + 0.25 * entropy_of_quarter) / 0.75, rel=1e-4)


def test_a_batch_equals_its_maps_one_by_one() -> None:
    logits = torch.randn(3, 8, 8) * 4
    torch.testing.assert_close(logits_entropy(logits), torch.stack([logits_entropy(m) for m in logits]))


def test_stability_counts_pixels_between_the_thresholds() -> None:
    logits = torch.tensor([[[5.0, 0.5], [-0.5, -5.0]], [[5.0, 5.0], [-5.0, -5.0]], [[-5.0, -5.0], [-5.0, -5.0]]])
    assert stability(logits).tolist() == pytest.approx([1 / 3, 1.0, 1.0])


@pytest.mark.parametrize("function", [mask_weighted_entropy, stability])
def test_one_dimension_is_refused(function: object) -> None:
    with pytest.raises(ShapeError, match="image dimensions"):
        function(torch.zeros(4))  # type: ignore[operator]
