"""Looks: pictures of the same thing are near, of other things far, and what cannot be seen has none."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.review.looks import Leaders, look

BOX = (20.0, 10.0, 60.0, 50.0)


def picture(seed: int, *, scale: int = 1, noise: int = 0, kind: str = "JPEG") -> bytes:
    """Smooth blotches, the same for a seed whatever the size and the noise."""
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8), np.uint8)
    image = Image.fromarray(coarse).resize((80 * scale, 64 * scale), Image.Resampling.BICUBIC)
    values = np.asarray(image, np.int16) + np.random.default_rng(99).integers(-noise, noise + 1, image.size[::-1])
    file = io.BytesIO()
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB").save(file, kind)
    return file.getvalue()


def bits(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def test_the_same_thing_is_near_at_another_size_and_noise_and_other_things_are_far() -> None:
    mine = look(picture(1), BOX, 64, 80)
    assert len(mine) == 16
    assert bits(mine, look(picture(1, scale=3, noise=6), BOX, 64, 80)) <= 6
    others = [look(picture(seed), BOX, 64, 80) for seed in range(2, 22)]
    assert min(bits(mine, other) for other in others) > 10


@pytest.mark.parametrize("shown", [b"", b"no picture", picture(1)[:200]])
def test_no_picture_has_no_look(shown: bytes) -> None:
    assert look(shown, BOX, 64, 80) == ""


def test_no_box_has_no_look_and_a_box_beyond_the_edge_is_cut() -> None:
    assert look(picture(1), None, 64, 80) == ""
    assert look(picture(1), (0.0, 0.0, 80.0, 64.0), 64, 80) != ""
    assert look(picture(1), (79.0, 63.0, 80.0, 64.0), 64, 80) != ""


def test_looks_join_the_first_leader_that_is_near_within_their_label() -> None:
    leaders = Leaders(2)
    assert leaders.join("cup", "00" * 8, "a") == "a"
    assert leaders.join("cup", "00" * 7 + "03", "b") == "a"
    assert leaders.join("cup", "00" * 7 + "07", "c") == "c"
    assert leaders.join("cup", "00" * 7 + "03", "d") == "a"
    assert leaders.join("dog", "00" * 8, "e") == "e"
    for number in range(200):  # more than there was room for
        name = leaders.join("far", f"{number * 0x0101010101010101 & (1 << 64) - 1:016x}", str(number))
        assert leaders.join("far", f"{number * 0x0101010101010101 & (1 << 64) - 1:016x}", "again") == name
