"""The editor: a click, a box or a stroke on a frame becomes a new mask at once, from the model that labels."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional

from usam.image import EncodedImage, encode_image

if TYPE_CHECKING:
    from pipeline.models import LoadedModel

DENSE_LOGIT = 10.0
"""What a pixel of the current mask is worth as a dense prompt, which is read as logits."""

GRID_PX = 256
"""Side of the grid on which the innermost pixel is looked for."""
NEAR = 0.04
"""Of the longer side of the frame: so far a background click reaches."""

BoolArray = NDArray[np.bool_]


class Candidate(NamedTuple):
    """One mask that the model offers.

    Attributes:
        mask_hw: (H, W) bool at the video's size.
        score: the model's own prediction of its IoU.
    """

    mask_hw: BoolArray
    score: float


class Editor:
    """Masks from prompts on single frames; calls from several threads take turns.

    Args:    loaded: the model; it may be used elsewhere meanwhile.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model
        self._lock = threading.Lock()

    def features(self, rgb_hw3: NDArray[np.uint8]) -> EncodedImage:
        """Run the image encoder, the larger part of the work; keep the result for all prompts on the frame.

        Args:   rgb_hw3: (H, W, 3) uint8, of the video's size or smaller.
        Raises: ShapeError for another shape or dtype.
        """
        with self._lock:
            return encode_image(self._model, rgb_hw3)

    def mask(
        self,
        features: EncodedImage,
        points_n2: NDArray[np.floating] | None,
        labels_n: NDArray[np.integer] | None,
        box_xyxy: NDArray[np.floating] | None,
        current_mask_hw: BoolArray | None,
        video_hw: tuple[int, int],
    ) -> Candidate:
        """The mask that a person's prompts ask for.

        A box says all that there is to say of what is meant, and the mask that is corrected is left out. Without one,
        that mask is a dense prompt, and its innermost pixel an unspoken foreground click: a background click alone says
        nothing that the model has learnt to follow. Where the answer disobeys a click, the reading that obeys most of
        them is taken; what that is worth is measured in benchmarks/review_edit.py.

        Args:
            features: of the frame.
            points_n2: (n, 2) clicks as (x, y), px of the video; labels_n: 1 foreground, 0 background; or None.
            box_xyxy: (4,) px of the video, or None.
            current_mask_hw: (H, W) bool, the mask that is being corrected; None starts anew.
            video_hw: height and width of the video, px.
        """
        clicks_n2 = np.zeros((0, 2), np.float32) if points_n2 is None else np.asarray(points_n2, np.float32)
        kinds_n = np.zeros(0, np.int32) if labels_n is None else np.asarray(labels_n, np.int32)
        dense_hw = (
            current_mask_hw if box_xyxy is None and current_mask_hw is not None and current_mask_hw.any() else None
        )
        asked = clicks_n2, kinds_n
        if dense_hw is not None and (inner := _innermost(dense_hw, clicks_n2[kinds_n == 0])) is not None:
            asked = np.concatenate([[inner], clicks_n2]).astype(np.float32), np.r_[1, kinds_n]

        def decoded(mask_hw: BoolArray | None, *, multimask: bool) -> list[Candidate]:
            return self._decode(features, *asked, box_xyxy, mask_hw, video_hw, multimask=multimask)

        one_click = box_xyxy is None and dense_hw is None and len(kinds_n) == 1  # it may mean the part or the whole
        found = decoded(dense_hw, multimask=one_click)
        first = max(found, key=lambda one: one.score)
        if _obeyed(first, clicks_n2, kinds_n) < len(kinds_n):
            found += decoded(None, multimask=True)
            if dense_hw is not None:
                found += decoded(dense_hw, multimask=True) + decoded(None, multimask=False)
            first = max(found, key=lambda one: (_obeyed(one, clicks_n2, kinds_n), one.score))
        if dense_hw is not None and not kinds_n[-1:].any():  # a background click takes away, and adds nothing
            return first._replace(mask_hw=first.mask_hw & dense_hw)
        return first

    def candidates(
        self, features: EncodedImage, current_mask_hw: BoolArray, video_hw: tuple[int, int]
    ) -> list[Candidate]:
        """Three masks of the object that a mask shows, as the model sees it on this frame alone.

        Args: current_mask_hw: (H, W) bool with at least a pixel.
        """
        return self._decode(features, None, None, None, current_mask_hw, video_hw, multimask=True)

    @torch.inference_mode()
    def _decode(
        self,
        features: EncodedImage,
        points_n2: NDArray[np.floating] | None,
        labels_n: NDArray[np.integer] | None,
        box_xyxy: NDArray[np.floating] | None,
        current_mask_hw: BoolArray | None,
        video_hw: tuple[int, int],
        *,
        multimask: bool,
    ) -> list[Candidate]:
        model, device = self._model, features.features_1chw.device
        points, labels = _sparse(points_n2, labels_n, box_xyxy, video_hw, int(model.image_size))
        with self._lock:
            dense = None if current_mask_hw is None else _dense(current_mask_hw, model).to(device)
            sparse, dense = model.sam_prompt_encoder(
                points=(points.to(device), labels.to(device)), boxes=None, masks=dense
            )
            masks_1mhw, ious_1m, *_ = model.sam_mask_decoder(
                image_embeddings=features.features_1chw,
                image_pe=model.sam_prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
                repeat_image=False,
                high_res_features=features.high_res,
            )
            full_mhw = functional.interpolate(masks_1mhw.float(), size=video_hw, mode="bilinear", align_corners=False)[
                0
            ]
            return [
                Candidate(mask, float(score))
                for mask, score in zip((full_mhw > 0).cpu().numpy(), ious_1m[0].float().cpu().numpy(), strict=True)
            ]


def _sparse(
    points_n2: NDArray[np.floating] | None,
    labels_n: NDArray[np.integer] | None,
    box_xyxy: NDArray[np.floating] | None,
    video_hw: tuple[int, int],
    image_size: int,
) -> tuple[Tensor, Tensor]:
    """Clicks and a box as SAM2 takes them, (1, n, 2) and (1, n); one that says "padding" where there are none."""
    points, labels = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int32)
    if box_xyxy is not None:
        points = torch.as_tensor(np.asarray(box_xyxy), dtype=torch.float32).reshape(2, 2)
        labels = torch.tensor([2, 3], dtype=torch.int32)
    if points_n2 is not None and labels_n is not None:
        points = torch.cat([points, torch.as_tensor(np.asarray(points_n2), dtype=torch.float32).reshape(-1, 2)])
        labels = torch.cat([labels, torch.as_tensor(np.asarray(labels_n), dtype=torch.int32)])
    if not len(points):
        return torch.zeros(1, 1, 2), -torch.ones(1, 1, dtype=torch.int32)
    height, width = video_hw
    return (points / torch.tensor([width, height]) * image_size)[None], labels[None]


def _obeyed(found: Candidate, points_n2: NDArray[np.floating], labels_n: NDArray[np.integer]) -> int:
    """How many clicks a mask obeys."""
    height, width = found.mask_hw.shape
    x_n = np.clip(points_n2[:, 0].astype(int), 0, width - 1)
    y_n = np.clip(points_n2[:, 1].astype(int), 0, height - 1)
    return int((found.mask_hw[y_n, x_n] == (labels_n > 0)).sum())


def _innermost(mask_hw: BoolArray, away_from_n2: NDArray[np.floating]) -> tuple[float, float] | None:
    """(x, y) of the pixel deepest inside of a mask, not near background clicks; None if they leave nothing."""
    step = max(1, -(-max(mask_hw.shape) // GRID_PX))
    left_hw = mask_hw[::step, ::step].copy()
    yy, xx = np.mgrid[: left_hw.shape[0], : left_hw.shape[1]] * step
    near = NEAR * max(mask_hw.shape)
    for x, y in away_from_n2:
        left_hw &= (xx - x) ** 2 + (yy - y) ** 2 > near**2
    if not left_hw.any():
        return None
    depth_hw = distance_transform_edt(np.pad(left_hw, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(depth_hw)), depth_hw.shape)
    return float(column * step) + 0.5, float(row * step) + 0.5


def _dense(mask_hw: BoolArray, model: Any) -> Tensor:
    """A mask as SAM2's dense prompt: logits of plus and minus `DENSE_LOGIT`, (1, 1, h, w)."""
    size = model.sam_prompt_encoder.mask_input_size
    mask_11hw = torch.as_tensor(mask_hw, dtype=torch.bool)[None, None].float()
    share_11hw = functional.interpolate(mask_11hw, size=size, mode="bilinear", align_corners=False, antialias=True)
    return (share_11hw * 2 - 1) * DENSE_LOGIT
