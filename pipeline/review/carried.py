"""Masks that people gave, carried on through a finished video by the model and settings that made its facts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.nn import functional

from pipeline import rle
from pipeline.columns import GIVEN
from pipeline.derive import derived_metadata
from pipeline.drops import PROMPTS_SUFFIX
from pipeline.encode import RowContext, candidate_rows, mask_row
from pipeline.errors import HeadError, MasksieveError, ModelError, VideoError
from pipeline.label import torch_threads
from pipeline.ledger import Commit
from pipeline.models import LoadedModel, load_model
from pipeline.prompt_inputs import is_seen
from pipeline.prompts import FramePrompt, ObjectPrompts, PromptSet, prompt_set
from pipeline.propagate import ReadFrame
from pipeline.records import upgraded
from pipeline.results import FrameResult
from pipeline.resume import EDGE_LOGIT
from pipeline.review.frames_again import FramesAgain
from pipeline.review.kept_answers import with_said
from pipeline.review.laid_over import Key, Said
from pipeline.review.repropagate import Stopping, Walk, repropagate
from pipeline.score import Scorer
from pipeline.settings import Settings
from pipeline.source import find_prompts
from pipeline.storage.manifest import derived_key
from pipeline.storage.objects import ObjectStore
from pipeline.stored_masks import StoredMask, found_objects
from pipeline.tokens import token_rows
from pipeline.video.probe import VideoInfo
from pipeline.video.sample import Sample
from usam.heads import HeadBank
from usam.weights import bank_sha256, load_bank

log = logging.getLogger(__name__)

COLUMNS = [
    "frame_index", "object_id", "label", "height", "width", "rle", "visibility", "prompted", "auto", "shot_index",
    "object_score",
]  # fmt: skip


@dataclass
class Carried:
    """What came out.

    Args:
        rows: of `records.MASKS`, by frame and object. candidates, tokens: of the sidecars that the video has.
    """

    rows: dict[Key, dict[str, Any]] = field(default_factory=dict)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)


def needs_video(said: Said, rule: Stopping) -> bool:
    """Whether the mask is to be carried on."""
    return said.prompts and (rule.accepts or said.answer.verdict != "accept")


def carry_on(
    commit: Commit,
    facts: Path,
    metadata: Mapping[str, Any],
    said: Mapping[Key, Said],
    ours: Mapping[Key, Said],
    audited: Set[Key],
    store: ObjectStore,
    settings: Settings,
    scratch: Path,
    *,
    model: LoadedModel | None,
    read: ReadFrame | None,
    info: VideoInfo | None,
    rule: Stopping,
    slot: Callable[[], AbstractContextManager[object]],
) -> Carried:
    """Carry the masks of new answers on through a video.

    Args:
        commit, facts, metadata: the generation that is corrected.
        said: what counts on each row, old answers and new. ours: of the new ones.
        audited: rows that stay as they are until somebody has judged them.
        read, info: where frames come from, one of both.
    Raises: ModelError, HeadError if what made the facts is not there; VideoError, PropagationError of the work.
    """
    config = metadata.get("config") or {}
    rows = Rows.read(facts, metadata, said)
    loaded = _model(metadata, settings, model)
    bank = _bank(metadata, settings, loaded)
    before = _prompts(commit, facts, metadata, rows, store, settings, scratch, loaded.image_size)
    prompts, new = _merged(before, said, ours, rows, rule, loaded.image_size)
    if not new:
        return Carried()
    if read is None:
        if info is None:
            raise VideoError(f"the video {commit.video_uri}", "nothing that can be read", "bring it back")
        read = FramesAgain(info.for_frames(rows.sample.indices), settings.decode, rows.sample, loaded.image_size)
    trusted, tokens = _accepted(store, commit, set(new)) | rows.given, bool(config.get("tokens"))
    given = {
        (one.object_id, rows.sample.frame_index(frame.frame_index)): frame.mask_hw
        for one in prompts.objects
        for frame in one.frames
        if frame.mask_hw is not None
    }
    context = RowContext(commit.video_id, commit.video_uri, {}, rows.height, rows.width, given)
    out, scorer = Carried(), Scorer(bank)
    with slot(), torch_threads(settings, loaded):
        walks = repropagate(
            loaded.model, prompts, new, rows.stored,
            lambda one, position: (rows.sample.frame_index(position), one) in trusted,
            read, (rows.height, rows.width), len(rows.sample), rule=rule, reverse=bool(config.get("reverse", True)),
            barriers=rows.cuts if config.get("on_cut") == "stop" else (),
            keep_candidates=bool(config.get("candidates")), keep_tokens=bank is not None or tokens,
            precision=config.get("precision", "float32"), exact=bool(config.get("exact")),
            max_group=config.get("max_group"), mask_token_offset=1 if bank is None else bank.mask_token_offset,
        )  # fmt: skip
        for walk in walks:
            if walk.direction == "forward":  # every walk is scored as if the object had begun here
                scorer = Scorer(bank, int(config.get("chunk_frames") or 16), keep_features=tokens)
            else:
                scorer.turn()
            for one, *_ in scorer.score(rows.sample.results(_beside_others(walk, rows))):
                key = one.result.frame_index, one.result.object_id
                if key in rows.final or key in audited or one.result.visibility == "untracked":
                    continue
                out.rows[key] = mask_row(context, 0.0, one)
                out.candidates += candidate_rows(context, one)
                out.tokens += token_rows(commit.video_id, one) if tokens else []
    return out


@dataclass(frozen=True)
class Rows:
    """The rows that are there, as far as carrying needs them.

    Args:
        sample: the labelled frames. height, width: px.
        masks: of the objects that something was said of, by object and position; others: counts of the masks of all
            objects by position, with the object. prompted: what each prompted or given row is, by object and position.
        given: rows whose mask a person gave; final: those that no propagation may change.
        cuts: positions at which a shot begins.
    """

    sample: Sample
    height: int
    width: int
    masks: Mapping[tuple[int, int], StoredMask]
    others: Mapping[int, list[tuple[int, bytes]]]
    prompted: Mapping[tuple[int, int], str]
    given: frozenset[Key]
    final: frozenset[Key]
    cuts: tuple[int, ...]

    @classmethod
    def read(cls, facts: Path, metadata: Mapping[str, Any], said: Mapping[Key, Said]) -> Rows:
        """The rows of the objects that something was said of, with what was said."""
        version = str(metadata.get("schema_version"))
        there = [name for name in COLUMNS if name in pq.read_schema(facts).names]
        table = pa.Table.from_batches([
            upgraded(batch, version) for batch in pq.ParquetFile(facts).iter_batches(columns=there)
        ])  # fmt: skip
        frames_n, first_n = np.unique(table["frame_index"].to_numpy(), return_index=True)
        sampled = "sampling" in (metadata.get("config") or {})
        sample = Sample(int(metadata["num_frames"]), frames_n.astype(np.int64) if sampled else None)
        shots_n = table["shot_index"].to_numpy()[first_n]
        cuts = tuple(sample.position(int(frame)) for frame in frames_n[1:][np.diff(shots_n) > 0])
        masks, prompted, others = {}, {}, dict[int, list[tuple[int, bytes]]]()
        columns = (table[name].to_pylist() for name in ("frame_index", "object_id", "rle"))
        for frame, one, counts in zip(*columns, strict=True):
            if counts is not None:
                others.setdefault(sample.position(frame), []).append((one, counts))
        given, final = set[Key](), set(said)
        objects = pa.array(sorted({one for _, one in said}), pa.int32())
        for row in table.filter(pc.is_in(table["object_id"], objects)).to_pylist():
            frame, one = row["frame_index"], row["object_id"]
            key, at = (frame, one), (one, sample.position(frame))
            kind, counts, score = row["prompted"], row["rle"], row["object_score"]
            if (word := said.get(key)) is not None and (kind != "mask" or word.shown):
                kind, score = "reject" if word.mask is None else "answer", None
                counts = word.mask and word.mask.counts
            if kind is not None:
                prompted[at] = kind
            if kind in (*GIVEN, "reject"):
                final.add(key)
            if kind in GIVEN:
                given.add(key)
            if kind == "reject":  # nothing is known there; what arrives may pass
                counts, score = rle.empty_mask(row["height"], row["width"]).counts, None
            if counts is not None:
                masks[at] = StoredMask(counts, score, row["height"], row["width"])
        height, width = table["height"][0].as_py(), table["width"][0].as_py()
        return cls(sample, height, width, masks, others, prompted, frozenset(given), frozenset(final), cuts)

    def stored(self, object_id: int, position: int) -> StoredMask | None:
        """The mask that is there."""
        return self.masks.get((object_id, position))


def _beside_others(walk: Walk, rows: Rows) -> Iterator[list[FrameResult]]:
    """Each result with the stored masks of the frame's other objects: a mask that runs onto another one is doubtful."""
    for (result,) in walk.results:
        found, logits_hw = [result], result.logits_hw
        for one, counts in rows.others.get(result.frame_index, ()):
            if one != walk.object_id and logits_hw is not None:
                mask_11hw = torch.from_numpy(rle.decode(counts, rows.height, rows.width))[None, None].float()
                share_hw = functional.interpolate(mask_11hw, size=logits_hw.shape, mode="area")[0, 0]
                stored_hw = torch.where(share_hw > 0.5, EDGE_LOGIT, -EDGE_LOGIT).to(logits_hw.device)
                found.append(FrameResult(result.frame_index, one, "none", None, "visible", stored_hw))
        yield found


def _merged(
    prompts: PromptSet, said: Mapping[Key, Said], ours: Mapping[Key, Said], rows: Rows, rule: Stopping,
    image_size: int,
) -> tuple[PromptSet, dict[int, set[int]]]:  # fmt: skip
    """All prompts of the objects that are to be carried on, and the positions of the new ones."""
    new: dict[int, set[int]] = {}
    for (frame, one), word in ours.items():
        there = (one, rows.sample.position(frame)) in rows.masks
        if needs_video(word, rule) and there and word.seen(image_size):
            new.setdefault(one, set()).add(rows.sample.position(frame))
    before, objects = {one.object_id: one for one in prompts.objects}, []
    for object_id in sorted(new):
        own = {rows.sample.position(frame): word for (frame, one), word in said.items() if one == object_id}
        objects.append(with_said(before.get(object_id, ObjectPrompts(object_id, None, ())), own, image_size))
    return prompt_set(objects, "prompts and answers"), new


def _prompts(
    commit: Commit, facts: Path, metadata: Mapping[str, Any], rows: Rows, store: ObjectStore, settings: Settings,
    scratch: Path, image_size: int,
) -> PromptSet:  # fmt: skip
    """The prompts that made the facts, at positions: those beside the video, or else the masks that they led to."""
    beside = f"{commit.video_uri.rpartition('.')[0]}{PROMPTS_SUFFIX}"
    try:
        found = find_prompts(beside, commit.video_uri, settings.storage)
        if found.sha256 == metadata.get("prompts_sha256"):
            return rows.sample.prompts(found)
    except MasksieveError as error:
        log.debug("no prompts beside %s: %s", commit.video_uri, error)
    if any(kind == "auto" for kind in rows.prompted.values()):
        return found_objects(store, commit, sample=rows.sample, scratch_dir=scratch)
    objects: dict[int, list[FramePrompt]] = {}
    for (one, position), kind in sorted(rows.prompted.items()):
        mask = rows.masks.get((one, position))
        if kind in ("click", "box", "mask") and mask is not None and is_seen(mask_hw := mask.mask_hw(), image_size):
            objects.setdefault(one, []).append(FramePrompt(position, mask_hw=mask_hw))
    return prompt_set([ObjectPrompts(one, None, tuple(frames)) for one, frames in objects.items()], "stored masks")


@lru_cache(maxsize=1)
def _loaded(name: str, device: str, cache_dir: Path | None) -> LoadedModel:
    """A model, loaded once for many videos."""
    return load_model(name, device=device, cache_dir=cache_dir)


def _model(metadata: Mapping[str, Any], settings: Settings, model: LoadedModel | None) -> LoadedModel:
    """The model that made the facts."""
    about = metadata.get("model") or {}
    if model is None or model.sha256 != about.get("sha256"):
        model = _loaded(str(about.get("name")), settings.model.device, settings.model.cache_dir)
    if model.sha256 != about.get("sha256"):
        got = f"other weights under the name {about.get('name')}"
        raise ModelError(f"the model {str(about.get('sha256'))[:12]} of the facts", got, "label the video again")
    return model


def _bank(metadata: Mapping[str, Any], settings: Settings, loaded: LoadedModel) -> HeadBank | None:
    """The heads that scored the facts."""
    wanted = metadata.get("heads_sha256")
    if wanted is None:
        return None
    named = None if settings.score.bank is None else load_bank(settings.score.bank, model_sha256=loaded.sha256)
    for bank in (loaded.bank, named):
        if bank is not None and bank_sha256(bank) == wanted:
            return bank
    step = "name them with score.bank, or rescore the video with those that are there"
    raise HeadError(f"the heads {wanted[:12]} of the facts", "others", step)


def _accepted(store: ObjectStore, commit: Commit, objects: set[int]) -> set[Key]:
    """The accepted rows of some objects, by the labels in place."""
    if (derived_metadata(store, commit, "labels") or {}).get("generation") != commit.generation:
        return set()
    with store.open(derived_key("labels", commit.first_seen, commit.video_id)) as file:
        found = pq.read_table(
            file, columns=["frame_index", "object_id"],
            filters=[("decision", "==", "accept"), ("object_id", "in", sorted(objects))],
        )  # fmt: skip
    return set(zip(found["frame_index"].to_pylist(), found["object_id"].to_pylist(), strict=True))
