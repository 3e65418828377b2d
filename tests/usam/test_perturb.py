"""Views of an image are uint8, repeatable, and as strong as they say."""

from __future__ import annotations

import numpy as np
import pytest

from usam.errors import ShapeError
from usam.perturb import PERTURBATIONS, perturb


@pytest.fixture
def image() -> np.ndarray:
    y, x = np.mgrid[:96, :128]
    return np.stack([x * 2 % 256, y * 2, (x + y) % 256], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_view_is_repeatable_and_leaves_the_image_alone(name: str, image: np.ndarray) -> None:
    before = image.copy()
    one, two = perturb(name, image, 3), perturb(name, image, 3)
    assert one.dtype == np.uint8
    assert one.shape == image.shape
    assert np.array_equal(one, two)
    assert np.array_equal(image, before)
    assert np.array_equal(one, image) == (name == "identity")


def test_only_noise_depends_on_the_seed(image: np.ndarray) -> None:
    changed = [name for name in PERTURBATIONS if not np.array_equal(perturb(name, image, 1), perturb(name, image, 2))]
    assert changed == ["gaussian_noise"]


def test_noise_has_the_variance_of_the_paper() -> None:
    grey = np.full((400, 400, 3), 128, np.uint8)
    noisy = perturb("gaussian_noise", grey).astype(float)
    sigma = 5000**0.5
    inside = (noisy > 0) & (noisy < 255)
    assert 1 - inside.mean() == pytest.approx(0.0713, abs=0.005)  # two tails beyond 128 / 70.7 sigma
    assert np.median(np.abs(noisy - 128)) == pytest.approx(0.6745 * sigma, rel=0.02)
    assert np.corrcoef(noisy[..., 0].ravel(), noisy[..., 1].ravel())[0, 1] == pytest.approx(0, abs=0.01)


def test_lower_quality_loses_more(image: np.ndarray) -> None:
    loss = [np.abs(perturb(name, image).astype(float) - image).mean() for name in ("jpeg_10", "jpeg_30")]
    assert loss[0] > loss[1] > 0


def test_blur_spreads_a_point_binomially_and_mirrors_the_border() -> None:
    dot = np.zeros((9, 9, 3), np.uint8)
    dot[4, 4] = 255
    row = np.array([1, 4, 6, 4, 1]) / 16
    assert np.array_equal(perturb("gaussian_blur", dot)[2:7, 2:7, 0], np.rint(255 * np.outer(row, row)))
    edge = np.zeros((6, 9, 3), np.uint8)
    edge[:, 1] = 160
    assert perturb("gaussian_blur", edge)[3, 0].tolist() == [80] * 3  # weight 4 from each side


def test_a_tiny_image_can_be_blurred() -> None:
    assert perturb("gaussian_blur", np.full((1, 2, 3), 9, np.uint8)).tolist() == [[[9] * 3] * 2]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("sepia", np.zeros((4, 4, 3), np.uint8)),
        ("jpeg_10", np.zeros((4, 4), np.uint8)),
        ("identity", np.zeros((4, 4, 3))),
    ],
)
def test_what_cannot_be_perturbed_is_refused(name: str, bad: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        perturb(name, bad)
