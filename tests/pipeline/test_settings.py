"""Settings: defaults, layers, and refusals that name the key and the nearest known one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipeline.errors import SettingsError
from pipeline.settings import Settings, config_dir, load_settings, refuse_secrets


def test_the_shipped_defaults_are_the_defaults_of_the_code() -> None:
    assert load_settings() == Settings()


def test_the_shipped_defaults_name_every_setting_but_the_secrets() -> None:
    def missing(section: type[BaseModel], data: dict[str, Any], prefix: str = "") -> list[str]:
        names = []
        for name, field in section.model_fields.items():
            if name not in data:
                names.append(prefix + name)
            elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                names += missing(field.annotation, data[name], f"{prefix}{name}.")
        return names

    data = yaml.safe_load((config_dir() / "default.yaml").read_text())
    secrets = ["storage.access_key_id", "storage.secret_access_key", "storage.session_token"]
    assert missing(Settings, data) == secrets


@pytest.mark.parametrize("name", ["default", "demo", "gpu"])
def test_shipped_files_load_by_name(name: str) -> None:
    assert load_settings(name).model.name in ("sam2_nano", "sam2.1_hiera_large")


def test_a_file_wins_over_defaults_and_an_override_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {device: cuda, threads: 3}\noutput:\n")
    settings = load_settings(file, {"model.device": "cpu", "output": {"jpeg_quality": 70}})
    assert (settings.model.device, settings.model.threads, settings.model.name) == ("cpu", 3, "sam2_nano")
    assert (settings.output.jpeg_quality, settings.output.max_review_frames) == (70, 50)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().model.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: {nmae: x}", ["'model.nmae'", "did you mean 'model.name'?"]),
        ("outptu: {}", ["'outptu'", "did you mean 'output'?"]),
        ("policy: {max_uncertainy: 0.2}", ["did you mean 'policy.max_uncertainty'?"]),
        ("decode: {zzzzzzzz: 1}", ["'decode.zzzzzzzz'", "decode.queue_frames"]),
        ("decode: {queue_frames: 0}", ["decode.queue_frames", "greater than or equal to 1", "got 0"]),
        ("decode: {watchdog_seconds: .nan}", ["decode.watchdog_seconds", "finite"]),
        ("model: {precision: float16}", ["model.precision", "'float32' or 'bfloat16'", "'float16'"]),
        ("model: 7", ["model", "got 7"]),
        ("- a list", ["a mapping", "list"]),
        ("model: {", ["readable YAML", "mine.yaml"]),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_and_the_file(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    for part in [*parts, "mine.yaml"]:
        assert part in str(caught.value)


def test_a_missing_file_names_the_shipped_ones() -> None:
    with pytest.raises(SettingsError, match=r"did you mean 'gpu'\?"):
        load_settings("gppu")


def test_secrets_are_never_shown() -> None:
    settings = load_settings(None, {"storage.secret_access_key": "hunter2"})
    assert settings.storage.secret_access_key is not None
    assert settings.storage.secret_access_key.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings) + settings.model_dump_json()
    with pytest.raises(SettingsError) as caught:
        load_settings(None, {"storage.secret_access_key": ["hunter2"]})
    assert "hunter2" not in str(caught.value)


def test_a_path_may_start_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert load_settings(None, {"output.scratch_dir": "~/scratch"}).output.scratch_dir == Path("/somewhere/scratch")


@pytest.mark.parametrize(
    "overrides",
    [
        {"storage.access_key_id": "hush"},
        {"storage": {"secret_access_key": "hush"}},
        {"model": {"device": "cpu"}, "storage": {"region": "eu", "session_token": "hush"}},
        {"storage": {"acces_key": "hush"}},
        {"storage": "hush"},
        {"storage.secret_access_key.value": "hush"},
        {"storage.endpoint_url": "https://me:hush@store:9000/x"},
    ],
)
def test_secrets_are_refused_where_a_server_would_keep_them_and_never_told(overrides: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="overrides without secrets, got a value for storage") as caught:
        refuse_secrets(overrides)
    assert "hush" not in str(caught.value)


def test_settings_that_are_no_secret_pass() -> None:
    refuse_secrets(None)
    refuse_secrets(
        {"storage.endpoint_url": "http://127.0.0.1:9000/a@b", "storage": {"region": "eu"}, "model.name": "x"}
    )
    refuse_secrets({"storage.access_key_id": None, "storage": None})
    refuse_secrets({"storage.retry_seconds": 5, "storage": {"stall_seconds": 5.0}})
