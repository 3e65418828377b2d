"""The main job: one video and its prompts become committed facts, labels and a review list."""

from __future__ import annotations

import logging
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pipeline import temporal
from pipeline.backing import require_certificate
from pipeline.certificate import find_evidence
from pipeline.derive import Derived, ReviewImages, derive
from pipeline.discover import automatic_prompts
from pipeline.drops import drop_name
from pipeline.encode import RowContext
from pipeline.errors import ForgottenError, MasksieveError
from pipeline.fact_settings import fact_settings, sampling_settings
from pipeline.job_checkpoint import JobCheckpoint, discard_checkpoint, open_checkpoint
from pipeline.ledger import Commit, CommitConflict, Ledger, corrected_key, work_key
from pipeline.local_facts import whole_facts
from pipeline.models import LoadedModel, cache_root, load_model
from pipeline.names import local_path
from pipeline.prompts import PromptSet
from pipeline.records import CANDIDATES, MASKS, TOKENS
from pipeline.report import VideoReport, report_of
from pipeline.review.kept_answers import KeptAnswers
from pipeline.review_images import write_review_images
from pipeline.score import score_head
from pipeline.scratch import require_room, scratch_folder
from pipeline.settings import Settings
from pipeline.source import LocalVideo, find_prompts, local_video, source_exists, split_url, told_by_address
from pipeline.stages import Job, run_stages
from pipeline.storage.manifest import FileRecord, discard_facts, facts_key, software_versions, write_facts
from pipeline.storage.objects import ObjectStore
from pipeline.stretches import Stretch
from pipeline.tokens import tokens_metadata
from pipeline.video.probe import VideoInfo, probe_video
from pipeline.video.sample import Sample, is_sampled
from usam.heads import HeadBank
from usam.weights import bank_sha256, load_bank

log = logging.getLogger(__name__)

SMALL_IMAGE_PX = 256
OBJECTS_IF_UNKNOWN = 4  # for the scratch estimate of a video whose objects are found on the way
SCRATCH_BYTES_PER_ROW = 4096  # generous: a row of facts with its run lengths takes about 1 kB


@dataclass(frozen=True)
class Progress:
    """How far a stage is: `done` of `total` frames."""

    stage: str
    done: int
    total: int


def default_drop(video: str) -> str:
    """The drop of a video that none was named for: the folder it lies in."""
    return drop_name(split_url(video)[0] if "://" in video else str(local_path(video).resolve().parent))


def label_video(
    video: str,
    prompts: str | Path | PromptSet | None,
    out: str,
    settings: Settings,
    *,
    drop: str | None = None,
    model: LoadedModel | None = None,
    progress: Callable[[Progress], None] | None = None,
    source: AbstractContextManager[LocalVideo] | None = None,
    slot: Callable[[], AbstractContextManager[object]] = nullcontext,
    attempt: int = 1,
    keep_first: bool = False,
) -> VideoReport:
    """Label one video: probe and decode, propagate, score, write, commit, route.

    A run that ends half-way leaves nothing that a reader sees; a run of work that is committed changes nothing, unless
    its facts were damaged since: they are made again. What people answered about masks (`pipeline.review`) counts on:
    their masks prompt the model, and stay where they are.

    Args:
        video: local path or s3:// URL.
        prompts: a prompt set, or where its file lies; without, `settings.prompts` say whether objects are found.
        out: folder or s3:// prefix.
        settings: of the run.
        drop: Hive partition of the labels; the video's folder if None.
        model: loaded before, for a run over several videos; loaded by name if None.
        progress: called from the calling thread, about once a frame.
        source: the video on local disk (`Prefetch.video`), entered once the prompts and the output were looked at;
            brought here if None.
        slot: entered around the stages that use the device, for jobs that share one.
        attempt: which attempt at this work it is, for the commit.
        keep_first: the same bytes with other prompts under another name, which still exists, are left as they are
            (status duplicate); otherwise the last name's prompts count.
    Returns: counts and where to look.
    Raises:  MasksieveError: VideoError, PromptError, ModelError, HeadError, PropagationError, StorageError.
    """
    started, started_at = time.monotonic(), datetime.now(UTC)
    propagated = 0

    def report(step: Progress) -> None:
        nonlocal propagated
        propagated += step.stage == "propagate"
        if progress is not None:
            progress(step)

    if prompts is None and settings.prompts.on_missing == "auto":
        found = automatic_prompts(settings.prompts.auto)
    else:
        found = find_prompts(prompts, video, settings.storage)
    store = ObjectStore(out, settings.storage)
    store.probe_conditional_put()  # an output that cannot be written is found before the work, not after it
    require_certificate(store, settings.policy)
    ledger = Ledger(store)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(scratch_folder(settings)))
        report(Progress("download", 0, 0))
        local = stack.enter_context(source or local_video(video, settings.storage, scratch))
        stack.enter_context(told_by_address(local))
        ledger.refuse_forgotten(local.video_id)
        report(Progress("probe", 0, 0))
        info = probe_video(local.path, settings.decode)
        found.validate(info)
        sample = Sample.of(info, settings.decode, found)
        loaded = model or load_model(
            settings.model.name, device=settings.model.device, cache_dir=settings.model.cache_dir
        )
        bank = loaded.bank
        if settings.score.bank is not None:
            bank = load_bank(settings.score.bank, model_sha256=loaded.sha256)
        heads_sha256 = None if bank is None else bank_sha256(bank)
        info = info.for_frames(sample.indices)  # who reads them, and so what the facts say
        config = facts_config(info, settings)
        key = work_key(local.video_id, found.sha256, loaded.sha256, heads_sha256, config)
        commit = ledger.newest(local.video_id)
        known = commit if commit is not None and commit.label_key == key else None
        fresh = known is None
        twin = keep_first and fresh and commit is not None and commit.video_uri != local.uri
        if twin and commit is not None and source_exists(commit.video_uri, settings.storage):
            fresh = False
            log.info("%s has the bytes of %s, whose labels stay", local.uri, commit.video_uri)
        else:
            twin = False
        if known is not None and not whole_facts(store, known, scratch):
            fresh = True
        kept = KeptAnswers.of(ledger, commit, found, scratch) if fresh else KeptAnswers()
        if kept.answers and not found.objects:
            # Objects that are found again may have other numbers: what people said of one could be laid over another.
            if known is None:
                fresh = False
                log.warning("%s stays as it is: people corrected objects that were found automatically", local.uri)
            kept = KeptAnswers()  # of damaged facts the same are made again: there the answers are applied once more
        metadata = facts_metadata(info, loaded, heads_sha256, config, found.sha256)
        checkpoints, made_by = _checkpoints(local, loaded, settings, metadata)
        if commit is None or fresh:
            parent = 0 if commit is None else commit.generation
            run_id = uuid.uuid4().hex
            checkpoint: JobCheckpoint | None = None
            if (seconds := settings.output.checkpoint_seconds) is not None:
                checkpoint = open_checkpoint(checkpoints, corrected_key(key, kept.answers), made_by, seconds)
            if checkpoint is not None:
                stack.callback(checkpoint.release)
            labelled = None if sample.indices is None else set(sample.indices)
            prompted = kept.prompts(found, labelled, loaded.image_size)
            job = _job(local, info, sample, prompted, loaded, bank, settings, scratch)
            report(Progress("device", 0, len(sample)))  # perhaps waits for it
            files = _make_facts(
                job, kept, slot, store, metadata, checkpoint,
                drop=drop or default_drop(video), attempt_id=f"{parent + 1:06d}-{run_id[:12]}", report=report,
            )  # fmt: skip
            report(Progress("commit", len(sample), len(sample)))
            try:
                commit = ledger.commit(
                    local.video_id, parent=parent, work_key=key, video_uri=local.uri,
                    drop=drop or default_drop(video), files=files, run_id=run_id, attempt=attempt,
                    started_at=started_at, corrects=kept.corrects, answers=kept.answers,
                )  # fmt: skip
            except (CommitConflict, ForgottenError):
                discard_facts(store, files)
                raise
            if commit.run_id != run_id:  # a rival committed the very same work first
                discard_facts(store, files)
            if checkpoint is not None:
                checkpoint.discard()
        elif not twin:
            discard_checkpoint(checkpoints, key, made_by)
        derived = _derive(store, ledger, commit, info, len(sample), settings, scratch, report)
        return report_of(
            video, commit, derived, len(sample), found, score_head(bank), "duplicate" if twin else fresh,
            propagated, info.damage, time.monotonic() - started, find_evidence(store, settings.policy, metadata),
        )  # fmt: skip


@contextmanager
def torch_threads(settings: Settings, loaded: LoadedModel) -> Iterator[None]:
    """Torch's thread count for the device stage, as it was afterwards.

    Unless the settings name a number, a small model on the CPU gets one thread: its operations are too short to share,
    and waiting threads take the cores from the decoder and the encoder.
    """
    before = torch.get_num_threads()
    small = loaded.device == "cpu" and loaded.image_size <= SMALL_IMAGE_PX
    torch.set_num_threads(settings.model.threads or (1 if small else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def facts_config(info: VideoInfo, settings: Settings) -> dict[str, Any]:
    """The settings that change facts, as JSON values: part of the work key and of the file metadata."""
    return {
        "decoder": info.decoder,
        **fact_settings(settings),
        **({"sampling": sampling_settings(settings)} if is_sampled(settings.decode) else {}),
        **({"good_prefix": {"frames": info.num_frames, "damage": info.damage}} if info.damage is not None else {}),
    }


def facts_metadata(
    info: VideoInfo, loaded: LoadedModel, heads_sha256: str | None, config: dict[str, Any], prompts_sha256: str
) -> dict[str, Any]:
    """File metadata of the facts: what made them, nothing of when or where."""
    return {
        "config": config,
        "model": {"name": loaded.name, "sha256": loaded.sha256},
        "heads_sha256": heads_sha256,
        "prompts_sha256": prompts_sha256,
        "decoder": {"name": info.decoder, "reason": info.decoder_reason},
        "fps": info.fps,
        "num_frames": info.num_frames,
        "software": software_versions("torch", "sam2", "decord", "av", "pycocotools"),
    }


def _checkpoints(
    source: LocalVideo, loaded: LoadedModel, settings: Settings, metadata: dict[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """Where jobs are saved between frames, and what must be the same for one to go on bit by bit."""
    root = settings.output.scratch_dir or cache_root(settings.model.cache_dir)
    with torch_threads(settings, loaded):
        made_by = {
            **metadata, "video_id": source.video_id, "video_uri": source.uri, "device": loaded.device,
            "threads": torch.get_num_threads(),
            "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
            "gpu": torch.cuda.get_device_name(loaded.device) if loaded.device.startswith("cuda") else None,
        }  # fmt: skip
    return root / "checkpoints", made_by


def _job(
    source: LocalVideo,
    info: VideoInfo,
    sample: Sample,
    prompts: PromptSet,
    loaded: LoadedModel,
    bank: HeadBank | None,
    settings: Settings,
    scratch: Path,
) -> Job:
    labels = {one.object_id: one.label for one in prompts.objects}
    given = {
        (one.object_id, frame.frame_index): frame.mask_hw
        for one in prompts.objects
        for frame in one.frames
        if frame.mask_hw is not None
    }
    auto = {one.object_id for one in prompts.objects if one.auto}
    context = RowContext(source.video_id, source.uri, labels, info.height, info.width, given, auto)
    return Job(info, sample, prompts, loaded, bank, settings, context, scratch)


def _make_facts(
    job: Job,
    kept: KeptAnswers,
    slot: Callable[[], AbstractContextManager[object]],
    store: ObjectStore,
    metadata: dict[str, Any],
    checkpoint: JobCheckpoint | None,
    *,
    drop: str,
    attempt_id: str,
    report: Callable[[Progress], None],
) -> list[FileRecord]:
    """Run the stages and write the layers under the attempt's own keys; true only when committed."""
    frames = len(job.sample)
    rows = frames * (len(job.prompts.objects) or OBJECTS_IF_UNKNOWN)
    for folder in {job.scratch, job.scratch if checkpoint is None else checkpoint.folder}:
        require_room(folder, rows * SCRATCH_BYTES_PER_ROW, f"{rows} rows")
    with slot(), torch_threads(job.settings, job.loaded):
        spools = run_stages(job, lambda stage, done, total: report(Progress(stage, done, total)), checkpoint)
    files: list[FileRecord] = []
    try:
        report(Progress("write", frames, frames))
        masks = kept.masks(spools.masks.merged(), spools.shots)
        layers = [("masks", MASKS, spools.shots.annotate(temporal.annotate(masks)))]
        if spools.candidates is not None:
            layers.append(("candidates", CANDIDATES, kept.sidecar(spools.candidates.merged(), CANDIDATES)))
        if spools.tokens is not None:
            layers.append(("tokens", TOKENS, kept.sidecar(spools.tokens.merged(), TOKENS)))
        for layer, schema, batches in layers:
            key = facts_key(layer, drop, job.context.video_id, attempt_id)
            files.append(
                write_facts(
                    store,
                    layer,
                    key,
                    batches,
                    schema,
                    metadata | tokens_metadata(job.bank) if layer == "tokens" else metadata,
                    row_group_rows=job.settings.output.row_group_rows,
                    scratch_dir=job.scratch,
                )
            )
    except BaseException:
        discard_facts(store, files)
        raise
    finally:
        spools.close()
    return files


def _derive(
    store: ObjectStore,
    ledger: Ledger,
    commit: Commit,
    info: VideoInfo,
    num_frames: int,
    settings: Settings,
    scratch: Path,
    report: Callable[[Progress], None],
) -> Derived:

    def pictures(stretches: Sequence[Stretch]) -> Mapping[str, ReviewImages]:
        try:
            return write_review_images(stretches, store, commit, info, settings)
        except MasksieveError as error:  # a picture is a convenience: labels do not wait for it
            log.warning("the review list of %s has no pictures: %s", commit.video_uri, error)
            return {}

    report(Progress("route", num_frames, num_frames))
    return derive(
        store,
        ledger,
        commit.video_id,
        settings.policy,
        images=pictures if settings.output.review_frames else None,
        row_group_rows=settings.output.row_group_rows,
        scratch_dir=scratch,
    )
