"""A bank equals its heads one by one, shifts gaps back, averages ensembles and refuses what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from usam.errors import HeadError, ShapeError
from usam.heads import HeadBank, HeadCard

CARD = HeadCard("model", "a" * 64)


def alone(state: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    x = torch.relu(tokens @ state["layers.0.weight"].T + state["layers.0.bias"])
    x = torch.relu(x @ state["layers.1.weight"].T + state["layers.1.bias"])
    return torch.sigmoid(x @ state["layers.2.weight"].T + state["layers.2.bias"])[:, 0]


def test_stacked_heads_equal_single_heads_and_gaps_are_centred(make_state: Callable[..., Any]) -> None:
    states = [make_state(seed=i) for i in range(3)]
    bank = HeadBank(["iou_tiny", "model_gap", "iou_tracked"], states, CARD)
    tokens = torch.randn(5, 8)
    scores = bank(tokens)
    assert list(scores) == ["iou_tiny", "model_gap", "iou_tracked"]
    for name, state, shift in zip(scores, states, (0, 0.5, 0), strict=True):
        torch.testing.assert_close(scores[name], alone(state, tokens) - shift)


def test_a_repeated_name_is_an_ensemble(make_state: Callable[..., Any]) -> None:
    states = [make_state(seed=i) for i in range(3)]
    bank = HeadBank(["iou_tracked", "task_gap", "iou_tracked"], states, CARD)
    tokens = torch.randn(4, 8)
    scores = bank(tokens)
    assert bank.heads == ("iou_tracked", "task_gap")
    torch.testing.assert_close(scores["iou_tracked"], (alone(states[0], tokens) + alone(states[2], tokens)) / 2)


def test_states_come_back_as_given(make_state: Callable[..., Any]) -> None:
    state = make_state()
    back = HeadBank(["iou_tracked"], [state], CARD).states()[0]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_no_rows_give_no_scores(make_state: Callable[..., Any]) -> None:
    assert HeadBank(["iou_tracked"], [make_state()], CARD)(torch.zeros(0, 8))["iou_tracked"].shape == (0,)


def test_an_unknown_head_is_refused(make_state: Callable[..., Any]) -> None:
    with pytest.raises(HeadError, match="iou_huge"):
        HeadBank(["iou_huge"], [make_state()], CARD)


def test_a_missing_layer_is_refused(make_state: Callable[..., Any]) -> None:
    state = make_state()
    del state["layers.1.bias"]
    with pytest.raises(HeadError, match=r"layers\.1\.bias"):
        HeadBank(["iou_tracked"], [state], CARD)


def test_heads_of_two_widths_are_refused(make_state: Callable[..., Any]) -> None:
    with pytest.raises(ShapeError, match="one width"):
        HeadBank(["iou_tiny", "iou_tracked"], [make_state(8), make_state(6)], CARD)


def test_tokens_of_another_width_are_refused(make_state: Callable[..., Any]) -> None:
    with pytest.raises(ShapeError, match=r"\(n, 8\)"):
        HeadBank(["iou_tracked"], [make_state()], CARD)(torch.zeros(2, 6))


def test_weights_that_are_not_finite_are_refused(make_state: Callable[..., Any]) -> None:
    state = make_state()
    state["layers.0.bias"][0] = float("nan")
    with pytest.raises(HeadError, match="non-finite"):
        HeadBank(["iou_tracked"], [state], CARD)


def test_gaps_are_also_differences_of_two_heads(make_state: Callable[..., Any]) -> None:
    names = ["iou_tiny", "iou_large", "iou_dense_prompt", "iou_unsupervised", "model_gap"]
    bank = HeadBank(names, [make_state(seed=i) for i in range(5)], HeadCard("sam2.1_hiera_tiny", "0" * 64))
    scores = bank(torch.randn(3, 8))
    gaps = bank.differences(scores)
    assert torch.equal(gaps["model_gap_difference"], scores["iou_large"] - scores["iou_tiny"])
    assert torch.equal(gaps["prompt_gap_difference"], scores["iou_dense_prompt"] - scores["iou_tiny"])
    assert torch.equal(gaps["task_gap_difference"], scores["iou_tiny"] - scores["iou_unsupervised"])
    other = bank.differences(scores, own="iou_large")
    assert torch.equal(other["task_gap_difference"], scores["iou_large"] - scores["iou_unsupervised"])


def test_gaps_whose_heads_are_missing_are_left_out(make_state: Callable[..., Any]) -> None:
    bank = HeadBank(["iou_tiny", "iou_large", "iou_dense_prompt"], [make_state(seed=i) for i in range(3)], CARD)
    scores = bank(torch.randn(3, 8))
    assert list(bank.differences(scores)) == ["model_gap_difference"]
    with pytest.raises(HeadError, match="iou_small"):
        bank.differences(scores, own="iou_small")
