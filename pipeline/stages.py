"""Decode, device and encode as overlapped stages: a video's frames in, spooled rows out, memory bounded throughout."""

from __future__ import annotations

import itertools
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.discover import Discovery
from pipeline.encode import EncodeStage, RowContext
from pipeline.errors import PropagationError, VideoError
from pipeline.job_checkpoint import JobCheckpoint
from pipeline.lookback import Lookback
from pipeline.models import LoadedModel
from pipeline.prompts import PromptSet
from pipeline.propagate import FrameResult, Session
from pipeline.score import Scorer
from pipeline.settings import Settings
from pipeline.spools import Spools
from pipeline.video.damage import AGAIN
from pipeline.video.probe import VideoInfo
from pipeline.video.sample import Sample
from pipeline.video.spool import FrameSpool
from pipeline.video.stream import Frame, FrameStream
from usam.heads import HeadBank

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What the stages need to know of one video.

    Args:
        info: the probed video.
        sample: which of its frames are labelled.
        prompts: validated against it; without objects they are found by `settings.prompts.auto`.
        loaded, bank: the model and the heads that score its masks, or None.
        context: what the rows say alike.
        scratch: folder of the spools.
    """

    info: VideoInfo
    sample: Sample
    prompts: PromptSet
    loaded: LoadedModel
    bank: HeadBank | None
    settings: Settings
    context: RowContext
    scratch: Path


def run_stages(job: Job, progress: Callable[[str, int, int], None], checkpoint: JobCheckpoint | None = None) -> Spools:
    """Propagate, score and encode a whole video, or the sample of its frames that is wanted.

    The session counts the frames that it is shown (positions); what goes in and comes out here has the source's
    frame_index, and the sample translates.

    A first pass goes forward over the decoded stream. If a prompt lies on a later frame, the frames up to the last such
    frame are first spooled to scratch at model size: the model needs the prompted frames before it starts, and the
    second pass, backward from each object's first prompt, reads them again. Without prompts, objects are found on the
    way, and the frames before they were found are kept.

    Args:
        job: the video, and how it is labelled.
        progress: called with (stage, done, total) frames.
        checkpoint: where to go on from, if it holds something, and to save to between frames; the spools lie there too.
    Returns: the rows, for the caller to read and close.
    Raises:  VideoError, PropagationError, StorageError of the stages; the decoding child is gone by then.
    """
    state = None if checkpoint is None else checkpoint.load()
    run = _Run(job, progress, checkpoint)
    if checkpoint is not None and state is not None:
        try:
            run.restore(state)
            where = f"{run.session.stage} pass, frame {run.session.next_frame} of {len(job.sample)}"
            log.warning("going on with %s from a checkpoint: %s", job.info.path.name, where)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the video can start over
            run.close()
            checkpoint.reject(error)
            run = _Run(job, progress, checkpoint)
    try:
        run.go()
        run.kept.close()
    except BaseException as error:
        run.close()
        if checkpoint is not None and run.restored and isinstance(error, VideoError | PropagationError):
            checkpoint.reject(error)  # it may be what is wrong: the next run starts over
        raise
    return run.spools


class _Run:
    """One video on its way: what both passes share, and where they stand.

    Attributes:
        kept: frames at model size that are read again: those up to the last prompt, or before late finds.
        restored: whether it goes on from a checkpoint and has not saved a newer one.
    """

    def __init__(self, job: Job, progress: Callable[[str, int, int], None], checkpoint: JobCheckpoint | None) -> None:
        self.job, self.progress, self.checkpoint, self.restored = job, progress, checkpoint, False
        self.prompts = job.sample.prompts(job.prompts)
        keep = job.settings.output.tokens
        self.scorer = Scorer(job.bank, job.settings.score.chunk_frames, keep_features=keep)
        self.pts_seconds = array("d")
        self.discovery: Discovery | None = None
        folder, size = None if checkpoint is None else checkpoint.folder, job.loaded.image_size
        self.head_frames = max((f.frame_index + 1 for one in self.prompts.objects for f in one.frames), default=0)
        self.kept: FrameSpool | Lookback
        if self.prompts.objects:
            path = None if folder is None else folder / "frames"
            self.kept = FrameSpool(folder or job.scratch, self.head_frames, size, path=path)
        else:
            self.discovery = Discovery(job.loaded.model, self._video_hw, job.settings.prompts.auto)
            self.kept = Lookback(folder or job.scratch, self.discovery, size, stays=folder is not None)
        self.spools = Spools(job.settings, job.scratch, folder)

    @cached_property
    def session(self) -> Session:
        """Made when it is needed: a checkpoint brings its own."""
        return self._new_session(Session)

    @property
    def _video_hw(self) -> tuple[int, int]:
        return self.job.info.height, self.job.info.width

    def _new_session(self, make: Callable[..., Session], **more: Any) -> Session:
        settings, bank = self.job.settings, self.job.bank
        session = make(
            self.job.loaded.model,
            self.prompts,
            self._video_hw,
            len(self.job.sample),
            reverse=settings.propagate.reverse,
            keep_candidates=settings.output.candidates,
            keep_tokens=bank is not None or settings.output.tokens,
            precision=settings.model.precision,
            mask_token_offset=bank.mask_token_offset if bank is not None else 1,
            exact=settings.propagate.exact,
            max_group=settings.propagate.max_group,
            discover=self.discovery,
            **more,
        )
        if self.discovery is not None:
            self.discovery.attach(session)
        return session

    def go(self) -> None:
        """Run both passes from where they stand."""
        total = len(self.job.sample)
        if self.session.stage != "backward":
            with ExitStack() as stack:
                stream = self._stream(stack)
                if self.session.stage == "new":
                    self._prepare(stream)
                done = self.session.next_frame
                self._pass("forward", "propagate", self.session.forward(self._shown(stream)), range(total), done)
            if len(self.pts_seconds) != total:
                got = f"{len(self.pts_seconds)}"
                raise VideoError(f"{total} frames of {self.job.info.path}", got, AGAIN)
        frames = self.session.backward_frames
        if frames:
            done = sum(f > self.session.next_frame for f in frames) if self.session.stage == "backward" else 0
            if self.session.stage != "backward":
                self.scorer.turn()
            results = self.session.backward(lambda index: self.kept.read(index).rgb_hw3)
            self._pass("backward", "backward", results, frames, done)

    def close(self) -> None:
        """Give the scratch back, but for what a checkpoint needs."""
        with ExitStack() as stack:
            stack.callback(self.spools.close)
            stack.callback(self.kept.close)

    # Frames in --------------------------------------------------------------------------------------------------------

    def _stream(self, stack: ExitStack) -> Iterator[Frame]:
        """Decoded frames from the first one on that is neither behind nor kept."""
        job, total = self.job, len(self.job.sample)
        resumed = self.session.stage != "new"
        start = max(self.session.next_frame, self.head_frames) if resumed else 0
        if start >= total:
            return iter(())
        first, size = job.sample.frame_index(start), job.loaded.image_size
        decoded = FrameStream(job.info, job.settings.decode, resize=size, start=first, indices=job.sample.indices)
        return job.sample.frames(stack.enter_context(decoded))

    def _prepare(self, stream: Iterator[Frame]) -> None:
        if isinstance(self.kept, FrameSpool):
            for frame in itertools.islice(stream, self.head_frames):
                self.kept.append(frame)
            if len(self.kept) < self.head_frames:
                got = f"{len(self.kept)}"
                raise VideoError(f"{self.head_frames} frames in {self.job.info.path}", got, AGAIN)
        with self.job.sample.told_by_frame_index():
            self.session.prepare(lambda index: self.kept.read(index).rgb_hw3)

    def _shown(self, stream: Iterator[Frame]) -> Iterator[Frame]:
        """The frames that the session takes, in order, each seen by whoever else looks at frames."""
        again = (self.kept.read(index) for index in range(self.session.next_frame, self.head_frames))
        for frame in itertools.chain(again, stream):
            position = len(self.pts_seconds)
            if isinstance(self.kept, Lookback) and self.session.reverse:
                self.kept.append(frame)
            self.pts_seconds.append(frame.pts_seconds)
            cut = self.spools.shots.see(self.job.sample.frame_index(position), frame.rgb_hw3)
            if cut and self.discovery is not None:
                self.discovery.shot_starts.add(position)
            if cut and self.job.settings.propagate.on_cut == "stop":
                self.session.barriers.add(position)
            yield frame

    # Rows out ---------------------------------------------------------------------------------------------------------

    def _pass(
        self, name: str, stage: str, results: Iterable[list[FrameResult]], positions: Sequence[int], done: int
    ) -> None:
        """Score and encode a pass of which `done` frames are behind."""
        chunk, context = self.scorer.chunk_frames, self.job.context
        with EncodeStage(context, self.spools.add_pass(name, descending=name == "backward"), chunk) as encode:
            for at, scored in enumerate(self.scorer.score(self.job.sample.results(results)), done):
                for one in scored:
                    if one.result.prompted is not None:
                        self.spools.shots.prompt(one.result.object_id, one.result.frame_index)
                    if one.result.prompted == "auto":
                        context.auto.add(one.result.object_id)
                encode.submit(self.pts_seconds[positions[at]], scored)
                self.progress(stage, at + 1, len(positions))
                if (at + 1) % chunk == 0:  # nothing waits in the scorer: chunks stay what they would have been
                    self._save(encode)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def _save(self, encode: EncodeStage) -> None:
        def state() -> dict[str, Any]:
            encode.drain()
            return {
                "session": self.session.state(),
                "scorer": self.scorer.state(),
                "spools": self.spools.mark(),
                "kept": self.kept.mark(),
                "discovery": None if self.discovery is None else self.discovery.state(),
                "pts_seconds": self.pts_seconds.tolist(),
                "auto": sorted(self.job.context.auto),
            }

        if self.checkpoint is not None and self.checkpoint.save_if_due(state):
            self.restored = False
            if isinstance(self.kept, Lookback):
                self.kept.saved()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `_save` saved in another process.

        Raises: StorageError if the spools are not what they were then; PropagationError for a state of another session.
        """
        self.session = self._new_session(Session.from_state, state=state["session"])
        self.scorer.restore(state["scorer"])
        self.spools.restore(state["spools"])
        self.kept.restore(state["kept"])
        if self.discovery is not None:
            self.discovery.restore(state["discovery"])
        self.pts_seconds = array("d", state["pts_seconds"])
        self.job.context.auto.update(state["auto"])
        self.restored = True
