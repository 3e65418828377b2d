"""Decode, device and encode as overlapped stages: a video's frames in, spooled rows out, memory bounded throughout."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from pipeline.encode import EncodeStage, PassWriters, RowContext
from pipeline.errors import VideoError
from pipeline.models import LoadedModel
from pipeline.prompts import PromptSet
from pipeline.propagate import Session
from pipeline.records import CANDIDATES, TOKENS
from pipeline.rowspool import RowSpool
from pipeline.score import Scorer
from pipeline.settings import Settings
from pipeline.video.probe import VideoInfo
from pipeline.video.spool import FrameSpool
from pipeline.video.stream import Frame, FrameStream
from usam.heads import HeadBank


class Spools:
    """Scratch of one video's rows: facts and the sidecars that the settings ask for; removed on close."""

    def __init__(self, settings: Settings, scratch: Path) -> None:
        self.masks = RowSpool(scratch)
        self.candidates = RowSpool(scratch, CANDIDATES) if settings.output.candidates else None
        self.tokens = RowSpool(scratch, TOKENS) if settings.output.tokens else None

    def add_pass(self, name: str, *, descending: bool = False) -> PassWriters:
        """Writers of a next pass."""
        candidates, tokens = (
            None if spool is None else spool.add_pass(name, descending) for spool in (self.candidates, self.tokens)
        )
        return PassWriters(self.masks.add_pass(name, descending), candidates, tokens)

    def close(self) -> None:
        """Remove the scratch files."""
        for spool in (self.masks, self.candidates, self.tokens):
            if spool is not None:
                spool.close()


def run_stages(
    info: VideoInfo,
    prompts: PromptSet,
    loaded: LoadedModel,
    bank: HeadBank | None,
    settings: Settings,
    context: RowContext,
    spools: Spools,
    scratch: Path,
    progress: Callable[[str, int, int], None],
) -> None:
    """Propagate, score and encode a whole video.

    A first pass goes forward over the decoded stream. If a prompt lies on a later frame, the frames up to the last such
    frame are first spooled to scratch at model size: the model needs the prompted frames before it starts, and the
    second pass, backward from each object's first prompt, reads them again.

    Args:
        info: the probed video.
        prompts: validated against it.
        loaded, bank: the model and the heads that score its masks, or None.
        context: what the rows say alike.
        spools: where the rows go.
        scratch: folder of the frame spool.
        progress: called with (stage, done, total) frames.
    Raises: VideoError, PropagationError, StorageError of the stages; the decoding child is gone by then.
    """
    session = Session(
        loaded.model,
        prompts,
        (info.height, info.width),
        info.num_frames,
        reverse=settings.propagate.reverse,
        keep_candidates=settings.output.candidates,
        keep_tokens=bank is not None or settings.output.tokens,
        precision=settings.model.precision,
        mask_token_offset=bank.mask_token_offset if bank is not None else 1,
    )
    scorer = Scorer(bank, settings.score.chunk_frames)
    last_prompt = session.conditioning_frames[-1]
    pts_seconds = array("d")
    with ExitStack() as stack:
        stream = stack.enter_context(FrameStream(info, settings.decode, resize=loaded.image_size))
        head = _take_head(stack, stream, scratch, last_prompt, loaded.image_size, info)
        session.prepare(lambda index: head(index).rgb_hw3)

        def frames() -> Iterator[Frame]:
            spooled = (head(index) for index in range(last_prompt + 1))
            for frame in itertools.chain(spooled, stream):
                pts_seconds.append(frame.pts_seconds)
                yield frame

        encode = stack.enter_context(_encoder(context, spools.add_pass("forward"), settings))
        for index, results in enumerate(scorer.score(session.forward(frames()))):
            encode.submit(pts_seconds[index], results)
            progress("propagate", index + 1, info.num_frames)
        if len(pts_seconds) != info.num_frames:
            raise VideoError(f"{info.num_frames} frames in {info.path}", f"{len(pts_seconds)}", "the file is damaged")
        backward = session.backward_frames
        if len(backward):
            encode = stack.enter_context(_encoder(context, spools.add_pass("backward", descending=True), settings))
            for done, results in enumerate(scorer.score(session.backward(lambda index: head(index).rgb_hw3)), 1):
                encode.submit(pts_seconds[results[0].result.frame_index], results)
                progress("backward", done, len(backward))


def _encoder(context: RowContext, writers: PassWriters, settings: Settings) -> EncodeStage:
    return EncodeStage(context, writers, settings.score.chunk_frames)


def _take_head(
    stack: ExitStack, stream: FrameStream, scratch: Path, last: int, size: int, info: VideoInfo
) -> Callable[[int], Frame]:
    """Take frames 0..last from the stream; returns how to read them again (from scratch if there are several)."""
    if last == 0:
        first = next(stream, None)
        if first is None:
            raise VideoError(f"at least one frame in {info.path}", "none", "check that it plays")
        return lambda index: first
    spool = stack.enter_context(FrameSpool(scratch, last + 1, size))
    for frame in itertools.islice(stream, last + 1):
        spool.append(frame)
    return spool.read
