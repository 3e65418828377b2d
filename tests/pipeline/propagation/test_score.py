"""Scores follow their own mask through chunks, and say what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.errors import HeadError
from pipeline.propagate import FrameResult, Session
from pipeline.score import Scorer
from usam.entropy import logits_entropy, stability
from usam.features import FEATURES, TrackFeatures
from usam.heads import HeadBank, HeadCard
from usam.stacker import Stacker, StackerCard
from usam.weights import heads_sha256

from .conftest import Clip, click, mask, prompt_set

WIDTH = 6


def bank_of(width: int, *names: str) -> HeadBank:
    generator = torch.Generator().manual_seed(0)
    shapes = {"layers.0": (width, width), "layers.1": (width, width), "layers.2": (1, width)}
    states = [
        {f"{key}.weight": torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        | {f"{key}.bias": torch.randn(shape[0], generator=generator) for key, shape in shapes.items()}
        for _ in names
    ]
    return HeadBank(names, states, HeadCard("m", "a" * 64))


def result(frame: int, **changes: Any) -> FrameResult:
    generator = torch.Generator().manual_seed(frame)
    fields: dict[str, Any] = {
        "frame_index": frame,
        "object_id": 1,
        "direction": "forward",
        "prompted": None,
        "visibility": "visible",
        "logits_hw": torch.randn(8, 8, generator=generator) * 3,
        "object_score": 2.0,
        "sam_score": 0.7,
        "chosen": 1,
        "tokens_2d": torch.randn(WIDTH, generator=generator),
    }
    return FrameResult(**{**fields, **changes})


def untracked(frame: int) -> FrameResult:
    return FrameResult(frame, 1, "none", None, "untracked")


@pytest.mark.parametrize("chunk_frames", [1, 3, 16])
def test_every_mask_gets_its_own_scores_whatever_the_chunk(chunk_frames: int) -> None:
    frames = [[untracked(0)], [result(1), result(2)], [], [result(3)], [result(4)]]
    bank = bank_of(WIDTH, "iou_tracked", "model_gap")
    scored = list(Scorer(bank, chunk_frames).score(frames))
    assert [[s.result for s in row] for row in scored] == frames
    for s in (s for row in scored[1:] for s in row):
        assert s.result.tokens_2d is not None
        assert s.result.logits_hw is not None
        alone = bank(s.result.tokens_2d[None])
        assert s.scores == pytest.approx({k: float(v) for k, v in alone.items()}, abs=1e-6)
        assert (s.predicted_iou, s.score_source) == (s.scores["iou_tracked"], "iou_tracked")
        assert s.stability == pytest.approx(float(stability(s.result.logits_hw)))
        assert s.entropy_bits == pytest.approx(float(logits_entropy(s.result.logits_hw)))


def test_frames_come_out_as_soon_as_their_chunk_is_full() -> None:
    taken: list[int] = []

    def frames() -> Any:
        for i in range(7):
            taken.append(i)
            yield [result(i)]

    scored = Scorer(None, 3).score(frames())
    next(scored)
    assert taken == [0, 1, 2]


def test_without_heads_sam2s_own_score_is_the_prediction() -> None:
    (only,) = next(Scorer(None).score([[result(0)]]))
    assert (only.scores, only.predicted_iou, only.score_source) == ({}, 0.7, "sam_score")


def test_a_bank_without_iou_tracked_reports_and_does_not_predict() -> None:
    (only,) = next(Scorer(bank_of(WIDTH, "model_gap")).score([[result(0)]]))
    assert set(only.scores) == {"model_gap"}
    assert (only.predicted_iou, only.score_source) == (0.7, "sam_score")


def test_an_absent_object_is_scored_by_its_absence() -> None:
    gone = result(0, visibility="absent", object_score=-3.0, logits_hw=torch.full((8, 8), -1024.0))
    (only,) = next(Scorer(bank_of(WIDTH, "iou_tracked")).score([[gone]]))
    assert only.score_source == "object_score"
    assert only.predicted_iou == pytest.approx(0.9526, abs=1e-4)
    assert set(only.scores) == {"iou_tracked"}
    assert only.stability is only.entropy_bits is None


def test_a_given_mask_and_an_untracked_frame_have_no_score() -> None:
    given = result(0, prompted="mask", sam_score=None, tokens_2d=None, chosen=None)
    for only in next(Scorer(bank_of(WIDTH, "iou_tracked")).score([[given, untracked(0)]])):
        assert (only.scores, only.predicted_iou, only.score_source) == ({}, None, None)
        assert only.stability is only.entropy_bits is None


def test_a_session_is_scored_end_to_end(model: Any, clip: Clip, make_model: Callable[..., Any]) -> None:
    bank = bank_of(2 * model.hidden_dim, "iou_tracked")
    prompts = prompt_set([click(2, 50, 35)], [mask(0, 30, 20, 70, 50)])
    session = Session(model, prompts, clip.video_hw, clip.num_frames)
    session.prepare(clip.read)
    forward = list(Scorer(bank, 4).score(session.forward(clip.frames())))
    assert len(forward) == clip.num_frames
    assert [s.score_source for s in forward[0]] == [None, None]
    assert [s.score_source for s in forward[2]] == ["iou_tracked", "iou_tracked"]
    backward = list(Scorer(bank, 4).score(session.backward(clip.read)))
    assert [[s.result.frame_index for s in row] for row in backward] == [[1], [0]]


def test_an_empty_chunk_is_refused() -> None:
    with pytest.raises(HeadError, match="chunk_frames"):
        Scorer(None, 0)


def stacked_bank(seed: int = 0) -> HeadBank:
    """A bank with a stacker that listens to every input."""
    bank = bank_of(WIDTH, "iou_tracked", "task_gap")
    generator = torch.Generator().manual_seed(seed)
    inputs = 2 + len(FEATURES)
    sizes = [(inputs, 8), (8, 8), (8, 1)]
    states = {f"weight.{i}": torch.randn(2, *size, generator=generator) * 0.3 for i, size in enumerate(sizes)}
    states |= {f"bias.{i}": torch.zeros(2, 1, columns) for i, (_, columns) in enumerate(sizes)}
    states |= {"mean": torch.zeros(inputs), "deviation": torch.ones(inputs)}
    bank.stacker = Stacker(states, StackerCard("m", "a" * 64, heads_sha256(bank), ("task_gap", "iou_tracked")))
    return bank


def stacked_pass() -> list[list[FrameResult]]:
    return [[result(0, prompted="click")], *([result(frame)] for frame in range(1, 9))]


def test_a_stacker_makes_the_score_and_the_heads_stay_beside_it() -> None:
    bank = stacked_bank()
    scored = [one for row in Scorer(bank, 4).score(stacked_pass()) for one in row]
    features = TrackFeatures()
    for one, row in zip(scored, stacked_pass(), strict=True):
        assert one.score_source == "iou_stacked"
        assert one.predicted_iou == one.scores["iou_stacked"]
        assert bank.stacker is not None
        heads = torch.tensor([[one.scores["task_gap"], one.scores["iou_tracked"]]])
        expected = bank.stacker(heads, torch.tensor([features(row)[0]]))
        assert one.scores["iou_stacked"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("chunk_frames", [1, 4, 16])
def test_chunks_do_not_change_what_the_stacker_says(chunk_frames: int) -> None:
    expected = [one.predicted_iou for row in Scorer(stacked_bank(), 3).score(stacked_pass()) for one in row]
    got = [one.predicted_iou for row in Scorer(stacked_bank(), chunk_frames).score(stacked_pass()) for one in row]
    assert got == pytest.approx(expected, abs=1e-6)


def test_a_scorer_goes_on_where_its_state_was_taken() -> None:
    whole = [one.predicted_iou for row in Scorer(stacked_bank(), 3).score(stacked_pass()) for one in row]
    first = Scorer(stacked_bank(), 3)
    got = [one.predicted_iou for row in first.score(stacked_pass()[:6]) for one in row]
    second = Scorer(stacked_bank(), 3)
    second.restore(first.state())
    assert got + [one.predicted_iou for row in second.score(stacked_pass()[6:]) for one in row] == whole


def test_the_reverse_pass_is_scored_from_the_prompt_on() -> None:
    scorer, fresh = Scorer(stacked_bank(), 4), Scorer(stacked_bank(), 4)
    back = [[result(frame, direction="reverse")] for frame in (20, 19)]
    prompt = [[result(30, prompted="click")]]
    list(scorer.score([*prompt, [result(31)], [result(32)]]))
    scorer.turn()
    list(fresh.score(prompt))
    assert [row[0].predicted_iou for row in scorer.score(back)] == [row[0].predicted_iou for row in fresh.score(back)]
