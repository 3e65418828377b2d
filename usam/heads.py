"""All USAM heads as one stack of small MLPs, evaluated with three batched matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from usam.errors import HeadError, ShapeError
from usam.targets import SIZED_HEADS, gaps_by_difference, shift_of

if TYPE_CHECKING:
    from usam.stacker import Stacker

MlpState = Mapping[str, Tensor]


@dataclass(frozen=True)
class HeadCard:
    """Where a bank comes from and what it belongs to; the JSON beside the weights.

    Attributes:
        model_name:   the SAM2 model whose tokens the heads read.
        model_sha256: checksum of that model's weights; a bank is refused for any other.
        mask_token_offset: 1 if output j was paired with its own token j + 1, 0 if with token j (as published).
        recipe:       how the heads were trained: optimiser, rates, seed, data, rows.
        heldout:      figures on videos that training has not seen, per head.
    """

    model_name: str
    model_sha256: str
    mask_token_offset: int = 1
    recipe: Mapping[str, Any] = field(default_factory=dict)
    heldout: Mapping[str, Any] = field(default_factory=dict)


class HeadBank:
    """Heads `2d -> 2d -> 2d -> 1`, ReLU between, sigmoid at the end, stacked over heads.

    A name may come more than once: its MLPs are an ensemble and their outputs are averaged. Gaps come out in
    [-0.5, 0.5], everything else in [0, 1].

    Args:
        names: one head name per MLP.
        states: per MLP `layers.{0,1,2}.{weight,bias}`, the published layout.
        card: origin of the bank.

    Attributes:
        stacker: what turns the heads' outputs and a track's features into the frame's score; None without one.

    Raises: HeadError for an unknown name or a state that lacks a tensor; ShapeError for widths that do not agree.
    Source: Kaiser et al., ICML 2025, section 3.
    """

    def __init__(self, names: Sequence[str], states: Sequence[MlpState], card: HeadCard) -> None:
        if not names or len(names) != len(states):
            raise HeadError(
                "one state per head, at least one", f"{len(names)} names, {len(states)} states", "pair them"
            )
        for name in names:
            shift_of(name)
        self.names, self.card = tuple(names), card
        self.stacker: Stacker | None = None
        self.heads = tuple(dict.fromkeys(names))
        width = _checked_width(names, states)
        self.width = width
        self._shifts_h = torch.tensor([shift_of(name) for name in self.heads])
        # (H, in, out): ready for baddbmm, so that nothing is transposed per call.
        self._weights = [
            torch.stack([s[f"layers.{i}.weight"].float().T for s in states]).contiguous() for i in range(3)
        ]
        self._biases = [torch.stack([s[f"layers.{i}.bias"].float() for s in states])[:, None] for i in range(3)]
        mix_hm = torch.tensor([[float(n == head) for n in names] for head in self.heads])
        self._mix_hm = mix_hm / mix_hm.sum(1, keepdim=True)

    @property
    def mask_token_offset(self) -> int:
        """Which mask token belongs to a chosen mask; give it to whatever captures the tokens."""
        return self.card.mask_token_offset

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._mix_hm.device

    def to(self, device: torch.device | str) -> HeadBank:
        """The bank itself, moved."""
        self._weights = [w.to(device) for w in self._weights]
        self._biases = [b.to(device) for b in self._biases]
        self._mix_hm, self._shifts_h = self._mix_hm.to(device), self._shifts_h.to(device)
        if self.stacker is not None:
            self.stacker.to(device)
        return self

    def states(self) -> list[dict[str, Tensor]]:
        """Per MLP, in the order of `names`, the published layout `layers.{0,1,2}.{weight,bias}`."""
        return [
            {f"layers.{i}.weight": self._weights[i][m].T.contiguous() for i in range(3)}
            | {f"layers.{i}.bias": self._biases[i][m, 0].contiguous() for i in range(3)}
            for m in range(len(self.names))
        ]

    @torch.inference_mode()
    def members(self, tokens_n2d: Tensor) -> Tensor:
        """Every MLP's raw output, before ensembles are averaged and gaps shifted back.

        Args:    tokens_n2d: (n, 2d) float, IoU token beside mask token, on the bank's device.
        Returns: (M, n) float32 in [0, 1] in the order of `names`.
        Raises:  ShapeError for another width.
        """
        if tokens_n2d.ndim != 2 or tokens_n2d.shape[1] != self.width:
            raise ShapeError(
                f"tokens (n, {self.width})",
                str(tuple(tokens_n2d.shape)),
                "use tokens of the model named on the bank's card",
            )
        x_mnc = tokens_n2d.float().expand(len(self.names), -1, -1)
        for weight, bias in zip(self._weights[:2], self._biases[:2], strict=True):
            x_mnc = torch.baddbmm(bias, x_mnc, weight).relu_()
        return torch.baddbmm(self._biases[2], x_mnc, self._weights[2])[..., 0].sigmoid_()

    @torch.inference_mode()
    def stacked(self, tokens_n2d: Tensor) -> Tensor:
        """Every head's output in one tensor.

        Args:    tokens_n2d: (n, 2d) float, IoU token beside mask token, on the bank's device.
        Returns: (H, n) float32 in the order of `heads`, gaps already shifted back.
        Raises:  ShapeError for another width.
        """
        return self._mix_hm @ self.members(tokens_n2d) - self._shifts_h[:, None]

    def __call__(self, tokens_n2d: Tensor) -> dict[str, Tensor]:
        """Scores by head name, each (n,) float32; see `stacked`."""
        return dict(zip(self.heads, self.stacked(tokens_n2d), strict=True))

    def differences(self, scores: Mapping[str, Tensor], own: str | None = None) -> dict[str, Tensor]:
        """The gaps as differences of two IoU heads, see `usam.targets.gaps_by_difference`.

        Args:
            scores: what calling the bank gave.
            own: the head of the deployed model's own size; if None, by the card: its size, or the end of the name.
        Returns: by name (n,) float32 in [-1, 1], e.g. `model_gap_difference`; those whose heads the bank has.
        Raises:  HeadError for a name that the scores lack.
        """
        if own is None:
            named = str(self.card.recipe.get("size", self.card.model_name))
            own = next((head for size, head in SIZED_HEADS.items() if named.endswith(size)), None)
        elif own not in scores:
            raise HeadError(f"a head out of {', '.join(scores)}", repr(own), "name the head of the deployed model")
        return gaps_by_difference(scores, own)

    def __repr__(self) -> str:
        return f"HeadBank({', '.join(self.heads)}; width {self.width}, {len(self.names)} MLPs, {self.card.model_name})"


def _checked_width(names: Sequence[str], states: Sequence[MlpState]) -> int:
    wanted = {f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    width = 0
    for name, state in zip(names, states, strict=True):
        if set(state) != wanted:
            odd = sorted(wanted ^ set(state))
            raise HeadError(f"layers.0..2 weight and bias for {name}", f"{odd[0]} missing or extra", "check the file")
        width = width or int(state["layers.0.weight"].shape[1])
        shapes = [tuple(state[f"layers.{i}.{kind}"].shape) for i in range(3) for kind in ("weight", "bias")]
        expected = [(width, width), (width,), (width, width), (width,), (1, width), (1,)]
        if shapes != expected:
            raise ShapeError(f"{name} with layers {expected}", str(shapes), "put heads of one width into a bank")
        for key, tensor in state.items():
            if not bool(torch.isfinite(tensor).all()):
                raise HeadError(f"finite weights for {name}", f"a non-finite value in {key}", "train or copy it again")
    return width
