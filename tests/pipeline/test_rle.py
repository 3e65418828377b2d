"""Run lengths: the same masks that pycocotools and SAM2's own upsampling give."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from pipeline import rle
from pipeline.errors import ShapeError

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


@settings(deadline=None)
@given(masks)
def test_encoding_keeps_every_pixel_and_describes_the_mask(mask_hw: np.ndarray) -> None:
    encoded = rle.encode_mask(mask_hw)
    height, width = mask_hw.shape
    assert np.array_equal(rle.decode(encoded.counts, height, width), mask_hw)
    assert encoded.area_px == mask_hw.sum()
    if encoded.bbox_xyxy is None:
        assert not mask_hw.any()
        return
    rows, columns = np.nonzero(mask_hw)
    assert encoded.bbox_xyxy == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@settings(deadline=None)
@given(masks, st.randoms(use_true_random=False))
def test_iou_is_the_pixelwise_one(mask_hw: np.ndarray, random: object) -> None:
    other_hw = np.random.default_rng(random.getrandbits(32)).random(mask_hw.shape) > 0.5  # type: ignore[attr-defined]
    a, b = rle.encode_mask(mask_hw).counts, rle.encode_mask(other_hw).counts
    union = (mask_hw | other_hw).sum()
    truth = (mask_hw & other_hw).sum() / union if union else 1.0
    assert rle.iou(a, b, *mask_hw.shape) == pytest.approx(truth)
    assert rle.iou(a, b, *mask_hw.shape) == rle.iou(b, a, *mask_hw.shape)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (31, 33), (480, 854), (1080, 1920)])
def test_the_empty_mask_is_what_pycocotools_writes(height: int, width: int) -> None:
    written = coco.encode(np.zeros((height, width), np.uint8, order="F"))["counts"]
    assert rle.empty_mask(height, width) == rle.EncodedMask(written, 0, None)
    absent = rle.encode_logits(np.full((16, 16), -1024, np.float32), height, width)
    assert absent == rle.empty_mask(height, width)
    assert rle.iou(written, absent.counts, height, width) == 1.0


def assert_is_the_upsampled(low_hw: np.ndarray, height: int, width: int) -> None:
    """The mask of plain bilinear upsampling, but where that is 0 within rounding, in pycocotools' own form."""
    low_11hw = torch.from_numpy(low_hw)[None, None].double()
    plain_hw = torch.nn.functional.interpolate(low_11hw, (height, width), mode="bilinear")[0, 0].numpy()
    encoded = rle.encode_logits(low_hw, height, width)
    got_hw = rle.decode(encoded.counts, height, width)
    wrong_hw = got_hw != (plain_hw > 0)
    assert (np.abs(plain_hw[wrong_hw]) <= 1e-5 * np.abs(low_hw).max()).all()
    assert encoded == rle.encode_mask(got_hw)


@pytest.mark.parametrize(("height", "width"), [(1, 7), (37, 53), (240, 320), (479, 853), (720, 1280)])
@pytest.mark.parametrize("seed", range(3))
def test_logits_give_the_mask_of_plain_upsampling(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise_hw = rng.normal(size=(64, 64)).astype(np.float32) * 8
    assert_is_the_upsampled(noise_hw, height, width)
    y, x = np.mgrid[:64, :64]
    blob_hw = (rng.uniform(2, 20) - np.hypot(y - rng.uniform(0, 64), x - rng.uniform(0, 64))).astype(np.float32)
    assert_is_the_upsampled(blob_hw, height, width)
    assert_is_the_upsampled(np.ones((64, 64), np.float32), height, width)


@settings(deadline=None, max_examples=200)
@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(-50, 50, width=32)
    ),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_logits_of_any_shape_give_the_mask_of_plain_upsampling(low_hw: np.ndarray, height: int, width: int) -> None:
    assert_is_the_upsampled(low_hw, height, width)


def test_iou_of_an_empty_and_a_full_mask_is_zero() -> None:
    full = rle.encode_mask(np.ones((4, 6), bool))
    assert rle.iou(full.counts, rle.empty_mask(4, 6).counts, 4, 6) == 0.0


@pytest.mark.parametrize("shape", [(3, 4, 4), (4,), (0, 4)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected"):
        rle.encode_logits(np.ones(shape, np.float32), 8, 8)
    with pytest.raises(ShapeError, match="expected"):
        rle.encode_mask(np.ones(shape, bool))


def test_a_process_that_turns_warnings_into_errors_can_decode() -> None:
    code = "from pipeline import rle; rle.decode(rle.empty_mask(2, 3).counts, 2, 3)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
