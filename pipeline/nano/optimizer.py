"""Muon for matrices, AdamW for the rest: what trains a small SAM2 fastest on few cores."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix_mn: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values land in about [0.7, 1.2].

    Args:
        matrix_mn: (M, N) float32.
        steps: Newton-Schulz iterations.
    Returns: (M, N) float32.
    Source: Jordan et al., Muon (2024); coefficients as published there.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrix_mn.shape[0] > matrix_mn.shape[1]
    x = matrix_mn.T if tall else matrix_mn
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.T if tall else x
    return result


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon should update it: dense layers and ordinary convolutions, not embeddings or depth-wise filters."""
    if ("embed" in name and "patch_embed" not in name and "embeddings" in name) or name.endswith("_token.weight"):
        return False
    if name.endswith(("mask_tokens.weight", "pos_embed", "pos_embed_window", "maskmem_tpos_enc")):
        return False
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= 8 and parameter[0].numel() > 49


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; the step is scaled to AdamW's usual size so that both share a learning rate.

    Args:
        params: matrices, or filters seen as (out, rest).
        lr: learning rate.
        momentum: Nesterov momentum.
        weight_decay: decoupled.
        rank, world: orthogonalising is shared: each rank does every world-th matrix, the updates are summed.
    Source: Muon with the RMS matching of Liu et al. 2025 (0.2 * sqrt(max(m, n))).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.03,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.rank, self.world = rank, world

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand (already averaged over ranks)."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            updates = []
            for i, p in enumerate(params):
                state = self.state[p]
                if not state:
                    state["velocity"] = torch.zeros_like(p)
                velocity = state["velocity"].mul_(group["momentum"]).add_(p.grad)
                if i % self.world == self.rank:
                    aim = (p.grad + group["momentum"] * velocity).reshape(p.shape[0], -1)
                    scale = 0.2 * max(aim.shape) ** 0.5
                    updates.append((orthogonalize(aim) * scale).reshape(-1))
                else:
                    updates.append(torch.zeros(p.numel(), device=p.device))
            if self.world > 1:
                flat = torch.cat(updates)
                torch.distributed.all_reduce(flat)
                updates = list(flat.split([p.numel() for p in params]))
            for p, update in zip(params, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view_as(p), alpha=group["lr"])
