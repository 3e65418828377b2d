"""A harvest on disk: one Parquet row per mask, its tokens in a memory-mapped array beside it, resumable by video."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from usam.errors import HeadError, ShapeError
from usam.features import FEATURES
from usam.targets import GAP_HEADS, HEADS, TRACKED_HEAD, target_of

FORMAT = "masksieve-usam-1"
KINDS = ("frames", "tracked")
ENTROPIES = ("H_Std", "H_A", "H_XP", "H_T", "H_Theta", "H_Y")
CANDIDATES = tuple(f"candidate_{what}_{j}" for what in ("score", "iou") for j in range(3))
_IOUS = ("iou", *(name for name in HEADS if name not in GAP_HEADS))


def _fields() -> list[pa.Field]:
    need = [
        pa.field("video_id", pa.string(), False),
        pa.field("frame_index", pa.int64(), False),
        pa.field("object_id", pa.int64(), False),
        pa.field("size", pa.string(), False),  # whose tokens: tiny, small, base_plus or large
        pa.field("prompted", pa.bool_(), False),
        pa.field("visible", pa.bool_(), False),  # the truth is not empty
        pa.field("predicted", pa.bool_(), False),  # the mask that SAM2 chose is not empty
        pa.field("chosen", pa.int8(), False),  # 0: the single mask, 1..3: output j of the three, plus 1
        pa.field("best", pa.int8(), False),  # 1..3, by the truth
        pa.field("sam_score", pa.float32(), False),
        pa.field("iou_chosen", pa.float32(), False),  # of the mask that SAM2 chose: the row's own quality
    ]
    measured = (*CANDIDATES, *_IOUS, *ENTROPIES, *(name for name in FEATURES if name != "sam_score"))
    return need + [pa.field(name, pa.float32()) for name in measured]


ROWS = pa.schema(_fields())
"""Columns of a shard. What was not measured is null: IoU of other sizes, entropies, features."""


@dataclass(frozen=True)
class Plan:
    """What a shard holds and how it was made; two harvests with equal plans give equal bytes.

    Attributes:
        kind: "frames" (the paper's: single images, a centre click, multimask) or "tracked" (propagated frames).
        models: size -> {"name", "sha256"} of the models whose tokens or IoU are in it.
        deployed: the size whose masks are judged.
        dataset, split: where the videos come from.
        protocol: everything else that decides a row: prompts, seeds, selection, perturbations.
    """

    kind: str
    models: Mapping[str, Mapping[str, str]]
    deployed: str
    dataset: str
    split: str
    protocol: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise HeadError(f"a kind of harvest out of {', '.join(KINDS)}", repr(self.kind), "correct it")
        if self.deployed not in self.models:
            raise HeadError(f"a deployed size out of {', '.join(self.models)}", repr(self.deployed), "correct it")

    def values(self) -> dict[str, Any]:
        """As JSON values, in one canonical form."""
        plan = {name: getattr(self, name) for name in ("kind", "models", "deployed", "dataset", "split", "protocol")}
        values: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **plan}, sort_keys=True))
        return values


class ShardWriter:
    """Writes a shard video by video; a crash loses the video under way, and the same call goes on from there.

    Args:
        path: the shard's folder, made if missing.
        plan: what goes in.
    Raises: HeadError for a folder that holds, whole or in part, another plan's rows.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self._parts = path / "parts"
        found = path / "shard.json" if (path / "shard.json").is_file() else self._parts / "plan.json"
        if found.is_file():
            values = _read_json(found)
            changed = [name for name, value in plan.values().items() if values.get(name) != value]
            if changed:
                step = "name another folder, or delete this one"
                raise HeadError(f"a harvest of this plan in {path}", f"another {', '.join(changed)}", step)
        self.complete = (path / "shard.json").is_file()
        if not self.complete:
            self._parts.mkdir(parents=True, exist_ok=True)
            _write(self._parts / "plan.json", json.dumps(plan.values(), indent=1).encode())

    def done(self, video_id: str) -> bool:
        """Whether the video's rows are on disk already."""
        return self.complete or self._part(video_id, "parquet").is_file()

    def add(self, video_id: str, columns: Mapping[str, Sequence[Any] | NDArray[Any]], tokens_n5d: ArrayLike) -> None:
        """Write a video's rows, whole or not at all; none is fine.

        Args:
            video_id: the video.
            columns: by name of `ROWS` but `video_id`, n values each; a missing nullable column is null.
            tokens_n5d: (n, 5, d): the IoU token, then mask tokens 0..3.
        Raises: ShapeError for unequal lengths; HeadError for an unknown column, or a value that is not finite.
        """
        tokens = np.asarray(tokens_n5d, np.float32)
        rows = len(columns["frame_index"]) if "frame_index" in columns else 0
        odd = sorted(set(columns) - set(ROWS.names))
        if odd:
            raise HeadError(f"columns out of {', '.join(ROWS.names)}", odd[0], "correct the name")
        if rows and (tokens.ndim != 3 or tokens.shape[:2] != (rows, 5)):
            raise ShapeError(f"tokens ({rows}, 5, d)", str(tokens.shape), "give every row's IoU and mask tokens")
        if any(len(values) != rows for values in columns.values()):
            raise ShapeError(f"{rows} values per column", "unequal lengths", "give every row every column")
        if not np.isfinite(tokens).all():
            raise HeadError(f"finite tokens of {video_id}", "a value that is not", "run the model in float32")
        arrays = []
        for field in ROWS:
            values = [video_id] * rows if field.name == "video_id" else columns.get(field.name)
            arrays.append(pa.nulls(rows, field.type) if values is None else pa.array(values, field.type))
            if pa.types.is_floating(field.type) and not np.isfinite(arrays[-1].drop_null().to_numpy()).all():
                raise HeadError(f"finite {field.name} of {video_id}", "NaN or infinite", "leave it null")
        _save_array(self._part(video_id, "npy"), tokens.reshape(rows, 5, -1) if rows else np.zeros((0, 5, 0)))
        table = pa.Table.from_arrays(arrays, schema=ROWS)
        part = self._part(video_id, "tmp")
        pq.write_table(table, part)
        part.replace(self._part(video_id, "parquet"))

    def finish(self, video_ids: Sequence[str]) -> Shard:
        """Put the videos together, in this order, and publish the shard; its parts are removed.

        Raises: HeadError for a video that was not added, no row at all, or tokens of two widths.
        """
        if self.complete:
            shutil.rmtree(self._parts, ignore_errors=True)  # a crash right after publishing leaves them
            return Shard.open(self.path)
        missing = [video_id for video_id in video_ids if not self.done(video_id)]
        if missing:
            raise HeadError("rows of every video", f"none of {missing[0]}", "harvest the rest first")
        tables = [pq.read_table(self._part(video_id, "parquet")) for video_id in video_ids]
        counts = [table.num_rows for table in tables]
        rows = sum(counts)
        if not rows:
            raise HeadError(f"at least one row in {self.path}", "none", "check the truth and the prompts")
        maps = [
            np.lib.format.open_memmap(self._part(v, "npy"), "r") for v, n in zip(video_ids, counts, strict=True) if n
        ]
        if len({tokens.shape[2] for tokens in maps}) > 1:
            raise HeadError("tokens of one width", "several", "harvest models of different widths apart")
        part = self.path / "tokens.tmp"
        out = np.lib.format.open_memmap(part, "w+", np.float32, (rows, *maps[0].shape[1:]))
        start = 0
        for tokens in maps:
            out[start : start + len(tokens)] = tokens
            start += len(tokens)
        out.flush()
        del out
        part.replace(self.path / "tokens.npy")
        pq.write_table(pa.concat_tables(tables), self.path / "rows.tmp")
        (self.path / "rows.tmp").replace(self.path / "rows.parquet")
        for left in self.path.glob("shard.json.*.tmp"):  # of a crash while publishing
            left.unlink()
        totals = {"rows": rows, "videos": len(video_ids), "width": 2 * maps[0].shape[2]}
        _write(self.path / "shard.json", json.dumps({**self.plan.values(), **totals}, indent=1).encode() + b"\n")
        shutil.rmtree(self._parts)
        self.complete = True
        return Shard.open(self.path)

    def _part(self, video_id: str, ending: str) -> Path:
        return self._parts / f"{sha256(video_id.encode(errors='surrogatepass')).hexdigest()[:24]}.{ending}"


@dataclass(frozen=True)
class Shard:
    """A finished harvest, tokens memory-mapped.

    Attributes:
        path: its folder. plan: how it was made.
        table: (n rows) of `ROWS`.
        tokens_n5d: (n, 5, d) float32, IoU token and mask tokens 0..3.
    """

    path: Path
    plan: Plan
    table: pa.Table
    tokens_n5d: NDArray[np.float32]

    @staticmethod
    def open(path: Path) -> Shard:
        """Open a folder that `ShardWriter` finished.

        Raises: HeadError if it is missing, half-way, damaged or empty.
        """
        if not (path / "shard.json").is_file():
            half = (path / "parts").is_dir()
            got = "one that is not finished" if half else "none"
            step = "run the same `masksieve usam harvest` again, it goes on" if half else "harvest first"
            raise HeadError(f"a harvest in {path}", got, step)
        values = _read_json(path / "shard.json")
        try:
            if values["format"] != FORMAT:
                raise HeadError(f"a harvest of format {FORMAT}", repr(values["format"]), "harvest again")
            names = ("kind", "models", "deployed", "dataset", "split", "protocol")
            plan = Plan(*(values[name] for name in names))
            table = pq.read_table(path / "rows.parquet")
            tokens = np.lib.format.open_memmap(path / "tokens.npy", "r")
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            got = f"{type(error).__name__}: {error}"
            raise HeadError(f"a whole harvest in {path}", got, "harvest again") from error
        if table.schema.names != ROWS.names or tokens.ndim != 3 or len(tokens) != table.num_rows or not len(tokens):
            got = f"{table.num_rows} rows and tokens {tokens.shape}"
            raise HeadError(f"rows and tokens that match in {path}", got, "harvest again")
        return Shard(path, plan, table, tokens)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def width(self) -> int:
        """Of a head's input, 2 d."""
        return 2 * int(self.tokens_n5d.shape[2])

    def column(self, name: str) -> NDArray[Any]:
        """(n,) values by name; float columns have NaN where null.

        Raises: HeadError for an unknown name.
        """
        if name not in ROWS.names:
            raise HeadError(f"a column out of {', '.join(ROWS.names)}", repr(name), "correct the name")
        values: NDArray[Any] = self.table.column(name).to_numpy()
        return values

    def has(self, name: str) -> bool:
        """Whether a column was measured on at least one row."""
        return bool(self.table.column(name).null_count < self.table.num_rows)

    def pairs(self, rows: ArrayLike | None = None, *, offset: int = 1, of: str = "chosen") -> NDArray[np.float32]:
        """What heads are fed: the IoU token beside the token of a mask.

        Args:
            rows: (m,) numbers of rows or (n,) bool; all if None.
            offset: 1 takes a mask's own token, 0 the one before it (as published); see `DecoderCall.pairs`.
            of: "chosen" by SAM2, or "best" by the truth (as published).
        Returns: (m, 2 d) float32.
        Raises:  HeadError for another offset or choice.
        """
        if offset not in (0, 1) or of not in ("chosen", "best"):
            raise HeadError("offset 0 or 1, of chosen or best", f"{offset}, {of!r}", "correct the call")
        index = np.arange(len(self)) if rows is None else np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == np.bool_ else index
        mask_n = self.column(of).astype(np.int64)[index]
        token_n = mask_n if offset else np.maximum(mask_n - 1, 0)
        picked = np.asarray(self.tokens_n5d[index])
        pairs: NDArray[np.float32] = np.concatenate([picked[:, 0], picked[np.arange(len(index)), token_n + 1]], axis=1)
        return pairs

    def target(self, head: str) -> NDArray[np.float32]:
        """(n,) a head's target in [0, 1], gaps shifted; NaN where it was not measured.

        On propagated frames the gaps of model and prompt compare the masks that SAM2 chose, for these are what the
        larger model or the further clicks would replace; the task gap compares with the best of the three there.

        Raises: HeadError for an unknown head.
        """
        ious = {name: self.column(name) for name in _IOUS}
        if head == "prompt_gap" and self.plan.kind == "tracked":
            ious["iou"] = ious[TRACKED_HEAD]
        return target_of(head, ious)

    def heads(self) -> list[str]:
        """The heads whose targets are there, for at least one row."""
        return [name for name in HEADS if np.isfinite(self.target(name)).any()]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise HeadError(f"JSON in {path}", type(error).__name__, "delete the folder and harvest again") from error
    if not isinstance(values, dict):
        raise HeadError(f"a mapping in {path}", type(values).__name__, "delete the folder and harvest again")
    return values


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    part.write_bytes(data)
    part.replace(path)


def _save_array(path: Path, array: NDArray[Any]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with part.open("wb") as out:
        np.save(out, array.astype(np.float32))
    part.replace(path)
