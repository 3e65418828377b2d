"""What propagation says of one object on one frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Direction = Literal["forward", "reverse", "none"]
Visibility = Literal["visible", "absent", "untracked"]


@dataclass(frozen=True, slots=True)
class FrameResult:
    """One object on one frame. Tensors stay on the model's device.

    Attributes:
        direction:    "forward" or "reverse" for a propagated mask; "none" for a prompted or untracked frame.
        prompted:     what the frame was prompted by: "click", "box", "mask", "auto"; None if it was not.
        visibility:   "absent" is the model's own statement (object score <= 0); "untracked" is where the object is not
                      followed: before its first prompt, after a barrier, after its end.
        prompt_xyxy:  x0, y0, x1, y1 in px of the video, the box of the automatic prompt on this frame; else None.
        logits_hw:    (image_size / 4, same) float32 mask logits, -1024 everywhere if absent; None if untracked.
        object_score: logit of presence; None if untracked.
        sam_score:    SAM2's IoU prediction of this mask, in [0, 1]; None if the mask was given or untracked.
        candidates_3hw, candidate_scores_3: the three multimask outputs and SAM2's scores of them, if kept.
        chosen:       which mask this is: 0 the single-mask output, 1..3 the candidates; None if given or untracked.
        mask_tokens_4d: (4, d) float32, the tokens of the single mask and of the candidates, kept with the candidates.
        tokens_2d:    (2 * d,) float32, IoU token beside the chosen mask's token, if kept; None if given or untracked.
    """

    frame_index: int
    object_id: int
    direction: Direction
    prompted: str | None
    visibility: Visibility
    logits_hw: Tensor | None = None
    object_score: float | None = None
    sam_score: float | None = None
    candidates_3hw: Tensor | None = None
    candidate_scores_3: Tensor | None = None
    chosen: int | None = None
    tokens_2d: Tensor | None = None
    mask_tokens_4d: Tensor | None = None
    prompt_xyxy: tuple[float, ...] | None = None
