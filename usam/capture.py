"""Observes SAM2's mask decoder through hooks: its tokens, the mask it really chose and the candidates."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from usam.errors import HeadError


@dataclass(frozen=True, slots=True)
class DecoderCall:
    """What one call of SAM2's mask decoder did, for n rows.

    Attributes:
        iou_token_nd:     (n, d) float, the transformer's IoU token.
        mask_tokens_n4d:  (n, 4, d) float; index 0 is the single-mask token, 1..3 are the multimask tokens.
        chosen_n:         (n,) int64 in 0..3: the mask that SAM2 returns as its answer, in the same numbering.
        sam_score_n:      (n,) float, SAM2's own IoU prediction of the chosen mask.
        candidates_n3hw:  (n, 3, h, w) float logits of the multimask outputs, before absent objects are overwritten.
        candidate_scores_n3: (n, 3) float, SAM2's IoU predictions of the candidates.
    """

    iou_token_nd: Tensor
    mask_tokens_n4d: Tensor
    chosen_n: Tensor
    sam_score_n: Tensor
    candidates_n3hw: Tensor
    candidate_scores_n3: Tensor

    def pairs(self, mask_token_offset: int = 1) -> Tensor:
        """The heads' input: the IoU token beside the token of the chosen mask.

        Args:    mask_token_offset: 1 pairs multimask output j with token j + 1, its own; 0 pairs it with token j, as
                 the published heads were trained and are fed. The single-mask output has token 0 either way.
        Returns: (n, 2 * d) float.
        Raises:  HeadError for another offset.
        """
        if mask_token_offset not in (0, 1):
            raise HeadError("mask_token_offset 0 or 1", str(mask_token_offset), "use the field of the bank's card")
        index_n = self.chosen_n if mask_token_offset == 1 else (self.chosen_n - 1).clamp_min(0)
        if index_n.shape[0] == 1:
            token_nd = self.mask_tokens_n4d[0].index_select(0, index_n)
        else:
            token_nd = self.mask_tokens_n4d[torch.arange(index_n.shape[0], device=index_n.device), index_n]
        return torch.cat([self.iou_token_nd, token_nd], dim=1)


class TokenCapture:
    """A context in which every call of the model's mask decoder is observed; SAM2 is untouched on exit.

    `take()` right after a step gives the call that it made; `take_all()` gives every call since the last take, in
    order, for predictors that decode one object after the other. The hooks read, they change nothing, so a model gives
    bit-identical results inside and outside of the context.

    Args:
        model: a sam2 `SAM2Base` (any size), or a predictor that holds one as `.model`.
        hold:  how many calls are held for `take_all`, at least 1.
    Raises: HeadError for a model without SAM2's mask decoder, or `hold` below 1.
    Source: Kaiser et al., ICML 2025, section 3 (which tokens); upstream's `MaskDecoder.forward` (which mask). The
        chosen index and the other masks' scores are stored nowhere by SAM2, hence the hooks.
    """

    def __init__(self, model: Any, hold: int = 1) -> None:
        self._model: Any = model if hasattr(model, "sam_mask_decoder") else getattr(model, "model", None)
        if not hasattr(self._model, "sam_mask_decoder"):
            raise HeadError(
                "a sam2 model with a mask decoder", type(model).__name__, "give SAM2Base or a predictor of it"
            )
        if hold < 1:
            raise HeadError("hold of at least 1", str(hold), "hold the calls of one step")
        self._handles: list[Any] = []
        self._hidden_bnd: Tensor | None = None
        self._upscaled_bchw: Tensor | None = None
        self._calls: deque[DecoderCall] = deque(maxlen=hold)
        self._made = 0

    def __enter__(self) -> TokenCapture:
        if self._handles:
            raise HeadError("a capture that is entered once", "a second entry", "make a second TokenCapture")
        decoder = self._model.sam_mask_decoder
        self._handles = [
            decoder.transformer.register_forward_hook(self._on_transformer),
            decoder.output_upscaling[-1].register_forward_hook(self._on_upscaled),
            decoder.register_forward_hook(self._on_decoder, with_kwargs=True),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._hidden_bnd = self._upscaled_bchw = None
        self._calls.clear()
        self._made = 0

    def take(self) -> DecoderCall:
        """The latest decoder call, given out once; earlier ones are let go.

        Raises: HeadError if the decoder has not run since the last `take`.
        """
        if not self._calls:
            raise HeadError(
                "a mask decoder call since the last take", "none", "run a model step inside the context first"
            )
        call = self._calls[-1]
        self._calls.clear()
        self._made = 0
        return call

    def take_all(self) -> list[DecoderCall]:
        """Every decoder call since the last take, in the order in which they were made; none is an empty list.

        Raises: HeadError if there were more than `hold`, for the oldest are gone.
        """
        calls, made = list(self._calls), self._made
        self._calls.clear()
        self._made = 0
        if made > len(calls):
            raise HeadError(f"at most {len(calls)} calls between takes", str(made), "take more often, or hold more")
        return calls

    def _on_transformer(self, module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
        self._hidden_bnd = output[0]

    def _on_upscaled(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._upscaled_bchw = output

    def _on_decoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        decoder: Any = module
        hidden_bnd, upscaled_bchw = self._hidden_bnd, self._upscaled_bchw
        self._hidden_bnd = self._upscaled_bchw = None
        if hidden_bnd is None or upscaled_bchw is None:
            raise HeadError(
                "a mask decoder that runs its own transformer and upscaling",
                f"{type(module).__name__} that did not",
                "use an uncompiled sam2 model",
            )
        first = 1 if decoder.pred_obj_scores else 0
        iou_token_bd = hidden_bnd[:, first]
        mask_tokens_b4d = hidden_bnd[:, first + 1 : first + 5]
        multimask = bool(kwargs["multimask_output"] if "multimask_output" in kwargs else args[4])
        if multimask:
            candidates_b3hw, scores_b3 = output[0], output[1]
            best_b = scores_b3.argmax(dim=-1)
            chosen_b = best_b + 1
            sam_score_b = scores_b3.gather(1, best_b[:, None])[:, 0]
        else:
            # One mask came out: decode all four again from the same tensors, with upstream's own expression.
            hyper_b4c = torch.stack(
                [decoder.output_hypernetworks_mlps[i](mask_tokens_b4d[:, i, :]) for i in range(4)], dim=1
            )
            b, c, h, w = upscaled_bchw.shape
            masks_b4hw = (hyper_b4c @ upscaled_bchw.view(b, c, h * w)).view(b, -1, h, w)
            candidates_b3hw = masks_b4hw[:, 1:]
            scores_b3 = decoder.iou_prediction_head(iou_token_bd)[:, 1:]
            chosen_b = torch.zeros(b, dtype=torch.int64, device=hidden_bnd.device)
            if decoder.dynamic_multimask_via_stability and not decoder.training:
                stability_b = decoder._get_stability_scores(masks_b4hw[:, 0:1])[:, 0]
                stable_b = stability_b >= decoder.dynamic_multimask_stability_thresh
                chosen_b = torch.where(stable_b, chosen_b, scores_b3.argmax(dim=-1) + 1)
            sam_score_b = output[1][:, 0]
        call = DecoderCall(iou_token_bd, mask_tokens_b4d, chosen_b, sam_score_b, candidates_b3hw, scores_b3)
        self._calls.append(call)
        self._made += 1
