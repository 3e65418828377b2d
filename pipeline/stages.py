"""Decode, device and encode as overlapped stages: a video's frames in, spooled rows out, memory bounded throughout."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from pipeline.discover import Discovery
from pipeline.encode import EncodeStage, PassWriters, RowContext
from pipeline.errors import VideoError
from pipeline.lookback import Lookback
from pipeline.models import LoadedModel
from pipeline.prompts import PromptSet
from pipeline.propagate import Session
from pipeline.records import CANDIDATES, TOKENS
from pipeline.rowspool import RowSpool
from pipeline.score import Scorer
from pipeline.settings import Settings
from pipeline.shot_log import ShotLog
from pipeline.shots import ShotDetector
from pipeline.video.probe import VideoInfo
from pipeline.video.sample import Sample
from pipeline.video.spool import FrameSpool
from pipeline.video.stream import Frame, FrameStream
from usam.heads import HeadBank


class Spools:
    """Scratch of one video's rows: facts and the sidecars that the settings ask for; removed on close.

    Attributes:
        shots: what the merged facts need to say about scene cuts.
    """

    def __init__(self, settings: Settings, scratch: Path) -> None:
        looking = settings.propagate.on_cut != "ignore"
        self.shots = ShotLog(ShotDetector(settings.propagate.cut_threshold) if looking else None)
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
    sample: Sample,
    prompts: PromptSet,
    loaded: LoadedModel,
    bank: HeadBank | None,
    settings: Settings,
    context: RowContext,
    spools: Spools,
    scratch: Path,
    progress: Callable[[str, int, int], None],
) -> None:
    """Propagate, score and encode a whole video, or the sample of its frames that is wanted.

    The session counts the frames that it is shown (positions); what goes in and comes out here has the source's
    frame_index, and the sample translates.

    A first pass goes forward over the decoded stream. If a prompt lies on a later frame, the frames up to the last such
    frame are first spooled to scratch at model size: the model needs the prompted frames before it starts, and the
    second pass, backward from each object's first prompt, reads them again. Without prompts, objects are found on the
    way, and the frames before they were found are kept.

    Args:
        info: the probed video.
        sample: which of its frames are labelled.
        prompts: validated against it; without objects they are found by `settings.prompts.auto`.
        loaded, bank: the model and the heads that score its masks, or None.
        context: what the rows say alike.
        spools: where the rows go.
        scratch: folder of the frame spool.
        progress: called with (stage, done, total) frames.
    Raises: VideoError, PropagationError, StorageError of the stages; the decoding child is gone by then.
    """
    video_hw = info.height, info.width
    discovery = None if prompts.objects else Discovery(loaded.model, video_hw, settings.prompts.auto)
    session = Session(
        loaded.model,
        sample.prompts(prompts),
        video_hw,
        len(sample),
        reverse=settings.propagate.reverse,
        keep_candidates=settings.output.candidates,
        keep_tokens=bank is not None or settings.output.tokens,
        precision=settings.model.precision,
        mask_token_offset=bank.mask_token_offset if bank is not None else 1,
        discover=discovery,
    )
    scorer = Scorer(bank, settings.score.chunk_frames)
    pts_seconds = array("d")
    with ExitStack() as stack:
        decoded = FrameStream(info, settings.decode, resize=loaded.image_size, indices=sample.indices)
        stream = sample.frames(stack.enter_context(decoded))
        lookback: Lookback | None = None
        if discovery is None:
            head_frames = session.conditioning_frames[-1] + 1
            read = _take_head(stack, stream, scratch, head_frames - 1, loaded.image_size, info)
        else:
            discovery.attach(session)
            lookback = stack.enter_context(Lookback(scratch, discovery, loaded.image_size))
            head_frames, read = 0, lookback.read
        with sample.told_by_frame_index():
            session.prepare(lambda index: read(index).rgb_hw3)

        def frames() -> Iterator[Frame]:
            spooled = (read(index) for index in range(head_frames))
            for frame in itertools.chain(spooled, stream):
                position = len(pts_seconds)
                if lookback is not None and session.reverse:
                    lookback.append(frame)
                pts_seconds.append(frame.pts_seconds)
                cut = spools.shots.see(sample.frame_index(position), frame.rgb_hw3)
                if cut and settings.propagate.on_cut == "stop":
                    session.barriers.add(position)
                yield frame

        encode = stack.enter_context(_encoder(context, spools.add_pass("forward"), settings))
        for index, results in enumerate(scorer.score(sample.results(session.forward(frames())))):
            for one in results:
                if one.result.prompted is not None:
                    spools.shots.prompt(one.result.object_id, one.result.frame_index)
                if one.result.prompted == "auto":
                    context.auto.add(one.result.object_id)
            encode.submit(pts_seconds[index], results)
            progress("propagate", index + 1, len(sample))
        if len(pts_seconds) != len(sample):
            raise VideoError(f"{len(sample)} frames of {info.path}", f"{len(pts_seconds)}", "the file is damaged")
        backward = session.backward_frames
        if len(backward):
            encode = stack.enter_context(_encoder(context, spools.add_pass("backward", descending=True), settings))
            followed = sample.results(session.backward(lambda index: read(index).rgb_hw3))
            for done, results in enumerate(scorer.score(followed), 1):
                encode.submit(pts_seconds[sample.position(results[0].result.frame_index)], results)
                progress("backward", done, len(backward))


def _encoder(context: RowContext, writers: PassWriters, settings: Settings) -> EncodeStage:
    return EncodeStage(context, writers, settings.score.chunk_frames)


def _take_head(
    stack: ExitStack, stream: Iterator[Frame], scratch: Path, last: int, size: int, info: VideoInfo
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
