"""The job on a bucket, and with a model that has no heads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.label import label_video
from pipeline.models import LoadedModel
from pipeline.nano.clips import render_clip
from pipeline.render.film import FilmWriter
from pipeline.settings import load_settings

from .conftest import FRAMES, SEED, read_rows, run_label


def test_a_model_without_heads_is_scored_by_its_own_score(drop: Path, nano: LoadedModel, tmp_path: Path) -> None:
    import dataclasses

    report = run_label(drop, tmp_path, dataclasses.replace(nano, bank=None))
    rows = read_rows(tmp_path)
    scored = rows[(rows.score_source == "sam_score") & (rows.visibility == "visible")]
    assert report.score_source == "sam_score"
    assert not report.certified
    assert len(scored)
    assert scored.uncertainty.to_numpy() == pytest.approx(1 - scored.sam_score.to_numpy(), abs=1e-6)


@pytest.mark.slow
def test_a_real_size_model_without_heads_runs_and_says_how_to_get_them(
    drop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights in the place of a downloaded checkpoint: the architecture, the cache and the job are real."""
    import torch

    from pipeline.checkpoints import model_spec, weights_path
    from pipeline.cli import main
    from pipeline.models import build_model

    torch.manual_seed(0)
    place = weights_path(model_spec("sam2.1_hiera_tiny"), tmp_path / "cache")
    place.parent.mkdir(parents=True)
    torch.save({"model": build_model("sam2.1_hiera_tiny").state_dict()}, place)
    clip = render_clip(SEED, frames=3, size=160)
    with FilmWriter(tmp_path / "short.mp4", 25.0, quality=8) as film:
        for frame in clip.frames_thw3:
            film.append(frame)
    prompts = {"version": 1, "objects": [{"object_id": 1, "prompts": [{"frame_index": 0, "points": [[80, 80, 1]]}]}]}
    (tmp_path / "short.prompts.json").write_text(json.dumps(prompts))
    words = ["label", tmp_path / "short.mp4", "--out", tmp_path / "out", "--model", "sam2.1_hiera_tiny"]
    with pytest.raises(SystemExit) as exited:
        main([*map(str, words), "--set", f"model.cache_dir={tmp_path / 'cache'}"])
    assert exited.value.code == 0
    said = capsys.readouterr().out
    assert "uncertified" in said
    assert "masksieve usam fit" in said
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 3
    assert set(rows.score_source) <= {"sam_score", "object_score"}


@pytest.fixture
def rclone_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MASKSIEVE_LEDGER", str(tmp_path / "ledger.sqlite"))
    return


@pytest.mark.slow
@pytest.mark.usefixtures("rclone_ledger")
def test_from_a_bucket_into_a_bucket(drop: Path, nano: LoadedModel, rclone_s3: Any, tmp_path: Path) -> None:
    import s3fs

    store = rclone_s3.settings()
    bucket = rclone_s3.new_bucket()
    files = s3fs.S3FileSystem(
        key=rclone_s3.access_key_id, secret=rclone_s3.secret_access_key, endpoint_url=rclone_s3.endpoint_url
    )
    for name in ("clip.mp4", "clip.prompts.json"):
        files.put(str(drop / name), f"{bucket.removeprefix('s3://')}/night/{name}")
    settings = load_settings().model_copy(update={"storage": store})
    words = f"{bucket}/night/clip.mp4", f"{bucket}/night/clip.prompts.json", f"{bucket}/labels-of-night", settings
    report = label_video(*words, model=nano)
    table = pq.read_table(report.labels_uri.removeprefix("s3://"), filesystem=files)
    assert table.num_rows == FRAMES * 3
    assert label_video(*words, model=nano).status == "unchanged"
    local = run_label(drop, tmp_path, nano)
    facts = next(Path(tmp_path, "masks").rglob("*.parquet")).read_bytes()
    remote = files.cat(files.glob(f"{bucket.removeprefix('s3://')}/labels-of-night/masks/*/*.parquet")[0])
    assert local.rows == report.rows
    assert _without_uri(facts, tmp_path / "a.parquet") == _without_uri(remote, tmp_path / "b.parquet")


def _without_uri(data: bytes, scratch: Path) -> list[dict[str, Any]]:
    scratch.write_bytes(data)
    rows = pq.ParquetFile(scratch).read().drop_columns(["video_uri"]).to_pylist()
    return rows
