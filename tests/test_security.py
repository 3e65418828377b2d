"""Nothing that somebody else can write is executed: no pickle anywhere, weights are checked before they are read."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline.models
import usam.stacker
import usam.weights
from pipeline.demo import DEMO_CLIPS, make_drop
from pipeline.derive import derive
from pipeline.errors import HeadError, MasksieveError, ModelError, StorageError
from pipeline.job_checkpoint import STATE, open_checkpoint
from pipeline.label import label_video
from pipeline.ledger import Ledger
from pipeline.models import LoadedModel, load_model
from pipeline.plan import plan_drop
from pipeline.policy import Policy
from pipeline.prompts import load_prompts
from pipeline.render.labelled import read_labelled
from pipeline.settings import Settings, StorageSettings, load_settings
from pipeline.snapshot import dataset
from pipeline.snapshot.dataset import SnapshotDataset
from pipeline.snapshot.write import SnapshotOptions, write_snapshot
from pipeline.status import output_status
from pipeline.storage.objects import ObjectStore
from pipeline.work import WorkLog
from usam.shard import Shard
from usam.weights import load_bank

ROOT = Path(pipeline.models.__file__).parents[1]
SOURCES = [path for package in ("usam", "pipeline", "flows") for path in sorted((ROOT / package).rglob("*.py"))]
RUNS_CODE = {"pickle", "cPickle", "_pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle"}
READS_TENSORS = {  # each of these was looked at: tensors alone, and their checksum where others can write
    "pipeline/job_checkpoint.py", "pipeline/models.py", "pipeline/nano/export.py", "pipeline/nano/train.py",
    "usam/train.py", "usam/weights.py",
}  # fmt: skip


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def _payloads(marker: Path, scratch: Path) -> dict[str, bytes]:
    """Files that run code in who reads them as what they are."""
    torch.save({"model": Evil(marker)}, scratch / "evil.pt")
    np.save(scratch / "evil.npy", np.array([Evil(marker)] * 3, dtype=object), allow_pickle=True)
    return {
        "pickle": pickle.dumps(Evil(marker)),
        "torch": (scratch / "evil.pt").read_bytes(),
        "numpy": (scratch / "evil.npy").read_bytes(),
    }


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "somebody-elses-code-ran"


@pytest.fixture
def payloads(marker: Path, tmp_path: Path) -> dict[str, bytes]:
    return _payloads(marker, tmp_path)


def _calls(tree: ast.AST, *names: str) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in names]


def _is(call: ast.Call, keyword: str, value: bool) -> bool:
    return any(one.arg == keyword and ast.unparse(one.value) == str(value) for one in call.keywords)


def _faults(source: str, reads_tensors: bool) -> list[str]:
    """What in a module runs code that somebody else may have written."""
    tree = ast.parse(source)
    imports = [
        name.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    ]
    calls = _calls(tree, "eval", "exec", "pd.read_pickle", "torch.jit.load", "torch.hub.load", "yaml.unsafe_load")
    calls += [call for call in _calls(tree, "torch.load") if not (reads_tensors and _is(call, "weights_only", True))]
    calls += [call for call in _calls(tree, "np.load", "numpy.load") if _is(call, "allow_pickle", True)]
    calls += [call for call in _calls(tree, "yaml.load") if "BaseLoader" not in ast.unparse(call)]
    return [name for name in imports if name in RUNS_CODE] + [ast.unparse(call) for call in calls]


def test_no_module_reads_what_runs_code() -> None:
    modules = {str(path.relative_to(ROOT)): path.read_text() for path in SOURCES}
    assert modules.keys() >= READS_TENSORS
    faults = {name: _faults(source, name in READS_TENSORS) for name, source in modules.items()}
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "def f():\n    from joblib import load", "torch.load(x)", "torch.load(x, weights_only=False)",
        "torch.load(x, weights_only=flag)", "np.load(x, allow_pickle=True)", "yaml.load(x, yaml.Loader)", "eval(x)",
    ],
)  # fmt: skip
def test_what_runs_code_is_noticed(source: str) -> None:
    assert _faults(source, reads_tensors=True)
    assert _faults("torch.load(x, weights_only=True)", reads_tensors=False)


@pytest.mark.filterwarnings("ignore")
def test_what_is_put_in_place_of_an_object_would_run(payloads: dict[str, bytes], marker: Path, tmp_path: Path) -> None:
    """Or the tests below would show nothing."""
    readers: dict[str, Callable[[], Any]] = {
        "pickle": lambda: pickle.loads(payloads["pickle"]),
        "torch": lambda: torch.load(tmp_path / "evil.pt", weights_only=False),
        "numpy": lambda: np.load(tmp_path / "evil.npy", allow_pickle=True),
    }
    assert readers.keys() == payloads.keys()
    for read in readers.values():
        with suppress(FileExistsError):  # numpy makes it for each element
            read()
        marker.rmdir()


# What lies in an output -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return load_model("sam2_nano")


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(None, {
        "output.candidates": True, "output.tokens": True, "drops.settle_seconds": 0, "drops.max_attempts": 1,
        "policy.max_uncertainty": 0.5,
    })  # fmt: skip


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, nano: LoadedModel, settings: Settings) -> Path:
    """A folder with a drop of one video, and an output with every layer, a quarantine record and a snapshot."""
    root = tmp_path_factory.mktemp("night")
    make_drop(root / "drop", DEMO_CLIPS[:1], num_frames=4)
    store = ObjectStore(root / "out")
    records = WorkLog(store, settings.drops)
    (item,) = plan_drop(ObjectStore(root / "drop"), store, settings).wanted
    attempt = records.begin(item, "run")
    assert attempt is not None
    with suppress(ValueError), attempt:
        raise ValueError("no luck")
    _label(root, nano, settings)
    write_snapshot(str(root / "out"), SnapshotOptions(name="v1"), settings)
    return root


def _label(root: Path, nano: LoadedModel, settings: Settings) -> str:
    video = next((root / "drop").glob("*.mp4"))
    prompts = video.with_name(f"{video.stem}.prompts.json")
    return label_video(str(video), prompts, str(root / "out"), settings, model=nano).status


@pytest.mark.slow
def test_a_pickle_in_place_of_any_object_is_never_run(
    labelled: Path, nano: LoadedModel, settings: Settings, payloads: dict[str, bytes], marker: Path, tmp_path: Path
) -> None:
    out = tmp_path / "night" / "out"
    shutil.copytree(labelled, out.parent)
    store, ledger = ObjectStore(out), Ledger(ObjectStore(out))
    (video_id,) = ledger.newest_generations()
    readers: list[Callable[[], Any]] = [
        lambda: ledger.read(video_id, 1),
        lambda: derive(store, ledger, video_id, Policy(max_uncertainty=0.4)),
        lambda: _label(out.parent, nano, settings),
        lambda: read_labelled(str(out), video_id, StorageSettings()),
        lambda: write_snapshot(str(out), SnapshotOptions(name="v2"), settings),
        lambda: list(SnapshotDataset(str(out / "snapshots/v1"), verify=False)),
        lambda: output_status(store, settings.drops),
        lambda: plan_drop(ObjectStore(out.parent / "drop"), store, settings),
    ]
    keys = store.list()
    layers = {key.split("/")[0] for key in keys}
    assert layers >= {"masks", "candidates", "tokens", "labels", "review", "commits", "work", "snapshots"}
    for key, (kind, payload) in zip(keys, itertools.cycle(payloads.items()), strict=False):
        store.put_atomic(key, payload)
        for read in readers:
            with suppress(MasksieveError):  # nothing else: it is refused, or nobody looks at it
                read()
        assert not marker.exists(), f"a {kind} at {key} was run"
        shutil.rmtree(out)
        shutil.copytree(labelled / "out", out)


# What lies beside it: scratch, prompts, harvests, weights -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pickle", "torch", "numpy"])
def test_a_pickle_in_place_of_a_checkpoint_is_never_run(
    kind: str, payloads: dict[str, bytes], marker: Path, tmp_path: Path
) -> None:
    """Not even by who can write its checksum as well."""
    job = open_checkpoint(tmp_path / "jobs", "ab" * 32, {})
    assert job is not None
    job.save({"n": 1})
    path = job.folder / STATE
    head = json.loads(path.read_bytes()[:512]) | {"sha256": hashlib.sha256(payloads[kind]).hexdigest()}
    path.write_bytes(json.dumps(head).encode().ljust(511) + b"\n" + payloads[kind])
    assert job.load() is None
    assert not marker.exists()


@pytest.mark.parametrize("name", ["a.prompts.json", "mask.png", "mask.npy"])
def test_a_pickle_in_place_of_prompts_is_never_run(
    name: str, payloads: dict[str, bytes], marker: Path, tmp_path: Path
) -> None:
    picture = name if name != "a.prompts.json" else "mask.png"
    prompts = {"version": 1, "objects": [{"object_id": 1, "prompts": [{"frame_index": 0, "mask": picture}]}]}
    (tmp_path / "a.prompts.json").write_text(json.dumps(prompts))
    for payload in payloads.values():
        (tmp_path / name).write_bytes(payload)
        with pytest.raises(MasksieveError):
            load_prompts(tmp_path / "a.prompts.json")
    assert not marker.exists()


def test_a_pickle_in_place_of_a_harvest_is_never_run(
    judged_shard: Callable[..., Shard], payloads: dict[str, bytes], marker: Path
) -> None:
    shard = judged_shard(videos=2)
    for name in ("shard.json", "rows.parquet", "tokens.npy"):
        whole = (shard.path / name).read_bytes()
        for payload in payloads.values():
            (shard.path / name).write_bytes(payload)
            with pytest.raises(HeadError):
                Shard.open(shard.path)
        (shard.path / name).write_bytes(whole)
    assert Shard.open(shard.path).table.num_rows == len(shard)
    assert not marker.exists()


@pytest.fixture
def heads(tmp_path: Path, nano: LoadedModel) -> Path:
    """A copy of the shipped bank with its stacker."""
    found = next(pipeline.models.bank_folders()[-1].glob("sam2_nano-heads.safetensors"))
    for file in found.parent.glob("sam2_nano-heads*"):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / found.name


BANK = ["sam2_nano-heads.safetensors", "sam2_nano-heads-stacker.safetensors"]


@pytest.mark.parametrize("name", [*BANK, "sam2_nano-heads.json", "sam2_nano-heads-stacker.json"])
def test_a_pickle_in_place_of_heads_is_never_run(
    name: str, heads: Path, payloads: dict[str, bytes], marker: Path
) -> None:
    for payload in payloads.values():
        heads.with_name(name).write_bytes(payload)
        with pytest.raises(HeadError):
            load_bank(heads)
    assert not marker.exists()


def _never(*words: Any, **more: Any) -> None:
    raise AssertionError("it was read before it was checked")


def _change_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # of a weight: the file stays readable
    path.write_bytes(data)


def test_weights_with_a_changed_byte_are_refused_before_they_are_read(
    tmp_path: Path, nano: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / nano.weights.name
    shutil.copy(nano.weights, changed)
    _change_a_byte(changed)
    pipeline.models._read_state(changed)
    monkeypatch.setattr(pipeline.checkpoints, "weights_path", lambda *words: changed)
    monkeypatch.setattr(pipeline.models, "_read_state", _never)
    with pytest.raises(ModelError, match="sha256"):
        load_model("sam2_nano")


@pytest.mark.parametrize("name", BANK)
def test_heads_with_a_changed_byte_are_refused_before_they_are_read(
    name: str, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_bank(heads)
    _change_a_byte(heads.with_name(name))
    monkeypatch.setattr(usam.stacker if "stacker" in name else usam.weights, "load_file", _never)
    with pytest.raises(HeadError, match=r"expected weights .* copy"):
        load_bank(heads)


def test_a_snapshot_with_a_changed_byte_is_refused_before_it_is_read(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_read", _never)
    for part in (labelled / "out/snapshots/v1/train").glob("*.parquet"):
        folder = tmp_path / part.stem
        shutil.copytree(labelled / "out/snapshots/v1", folder)
        SnapshotDataset(str(folder))
        _change_a_byte(folder / "train" / part.name)
        with pytest.raises(StorageError, match="SHA-256"):
            SnapshotDataset(str(folder))
