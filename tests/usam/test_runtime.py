"""Costs are measured on the model that is asked about, heads of another width standing for its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from usam.errors import EvaluationError
from usam.heads import HeadBank, HeadCard
from usam.runtime import image_runtime


def test_every_part_is_timed(
    build_sam2: Callable[..., Any], make_state: Callable[..., dict[str, torch.Tensor]]
) -> None:
    bank = HeadBank(["iou_tiny", "model_gap"], [make_state(8)] * 2, HeadCard("", ""))
    time = image_runtime(build_sam2(), bank, frames=1)
    assert time.frames == 1
    assert time.heads_seconds > 0
    assert 0 < time.sam2_seconds < time.h_t_seconds  # one image against five
    assert time.with_heads_seconds == time.sam2_seconds + time.heads_seconds
    with pytest.raises(EvaluationError, match="at least 1 frame"):
        image_runtime(None, bank, frames=0)
