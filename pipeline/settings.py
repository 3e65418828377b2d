"""Every setting of a run in one frozen tree: shipped defaults, then a file, then overrides; nothing unknown passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from pipeline.checked_yaml import first_mistake, read_yaml
from pipeline.errors import SettingsError
from pipeline.policy import Policy
from pipeline.suggest import did_you_mean


def config_dir() -> Path:
    """The folder of the shipped YAML files: `pipeline/_configs` in a wheel, `configs/` in a checkout.

    Raises: SettingsError if neither is there (a broken installation).
    """
    package = Path(__file__).resolve().parent
    inside, checkout = package / "_configs", package.parent / "configs"
    if (inside / "default.yaml").is_file():
        return inside
    # Only a checkout has a pyproject.toml beside configs/: site-packages/configs may be somebody else's.
    if (checkout / "default.yaml").is_file() and (package.parent / "pyproject.toml").is_file():
        return checkout
    raise SettingsError(f"the shipped configuration at {inside} or {checkout}", "neither", "install masksieve again")


class _Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _expand(value: object) -> object:
    """Expand `~` in a path setting."""
    return str(Path(value).expanduser()) if isinstance(value, str | Path) else value


class ModelSettings(_Section):
    """Which model runs, and where.

    `device` auto takes CUDA when there is one; `slots` unattended jobs use it at a time on one machine. `threads` is
    torch's count (None: see `pipeline.label.torch_threads`). `cache_dir` None means $MASKSIEVE_CACHE, else
    ~/.cache/masksieve.
    """

    name: str = "sam2_nano"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    slots: int = Field(default=1, ge=1, le=64)
    threads: int | None = Field(default=None, ge=1, le=512)
    precision: Literal["float32", "bfloat16"] = "float32"
    cache_dir: Path | None = None

    _expand_cache = field_validator("cache_dir", mode="before")(_expand)


class DecodeSettings(_Section):
    """How a video is read, which of its frames are labelled, and the largest one that is accepted.

    `stride` takes every n-th frame; `fps` takes, for each tick of so many a second, the first frame at or after it;
    `start_seconds` and `end_seconds` bound a half-open range counted from the first frame. Frames that carry a prompt
    are always taken (`pipeline.video.sample`). `queue_frames` bounds the decoded frames in flight. `watchdog_seconds`
    without a frame end the decoder. `on_damage` keep_good_prefix labels the frames before the first damage, for which
    every video is decoded once more. Larger videos than `max_width` and `max_height` (px), `max_pixels` (of a frame;
    8K), `max_frames` and `max_seconds` (a day) are refused before they are decoded.
    """

    decoder: Literal["auto", "decord", "pyav"] = "auto"
    stride: int = Field(default=1, ge=1)
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    start_seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    end_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    on_damage: Literal["refuse", "keep_good_prefix"] = "refuse"
    queue_frames: int = Field(default=8, ge=1, le=256)
    watchdog_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    max_width: int = Field(default=8192, ge=1)
    max_height: int = Field(default=8192, ge=1)
    max_pixels: int = Field(default=36_000_000, ge=1)
    max_frames: int = Field(default=1_000_000, ge=1)
    max_seconds: float = Field(default=86_400.0, gt=0, allow_inf_nan=False)

    @field_validator("fps")
    @classmethod
    def _one_rate(cls, fps: float | None, info: ValidationInfo) -> float | None:
        if fps is not None and info.data.get("stride", 1) > 1:
            raise ValueError("not together with a stride")
        return fps

    @field_validator("end_seconds")
    @classmethod
    def _end_after_start(cls, end: float | None, info: ValidationInfo) -> float | None:
        start = info.data.get("start_seconds")
        if end is not None and start is not None and end <= start:
            raise ValueError(f"not after start_seconds ({start:g})")
        return end


class AutoPromptSettings(_Section):
    """How objects are found in a video that nobody prompted (`pipeline.auto_prompts`, `pipeline.discover`).

    `points_per_side` is the grid of clicks. `max_objects` are followed at once, `max_total` over the whole video.
    `every_frames` of the frames that are labelled comes a second look (None: none); an object that was absent for
    `end_after_absent` in a row is followed no further. `min_score` is of the confidence, `min_stability` of the
    stability score, `max_overlap` the share of the smaller of two masks up to which both stay; areas are shares of the
    frame. Thresholds were chosen for sam2_nano (benchmarks/auto_prompts.py).
    """

    points_per_side: int = Field(default=12, ge=1, le=64)
    max_objects: int = Field(default=16, ge=1, le=1024)
    max_total: int = Field(default=64, ge=1, le=100_000)
    every_frames: int | None = Field(default=30, ge=1)
    end_after_absent: int = Field(default=15, ge=1)
    min_score: float = Field(default=0.66, ge=0, le=1, allow_inf_nan=False)
    min_stability: float = Field(default=0.6, ge=0, le=1, allow_inf_nan=False)
    max_overlap: float = Field(default=0.7, ge=0, le=1, allow_inf_nan=False)
    min_area_share: float = Field(default=0.004, ge=0, le=1, allow_inf_nan=False)
    max_area_share: float = Field(default=0.4, gt=0, le=1, allow_inf_nan=False)


class PromptSettings(_Section):
    """What happens to a video without prompts: it is refused, or its objects are found automatically."""

    on_missing: Literal["refuse", "auto"] = "refuse"
    auto: AutoPromptSettings = AutoPromptSettings()


class PropagateSettings(_Section):
    """How masks travel: `reverse` also reaches frames before an object's first prompt.

    At a scene cut, `on_cut` flag follows objects on and marks the rows, stop follows none across it, ignore looks for
    no cuts. `cut_threshold` is how sure the detector must be (`pipeline.shots`); higher finds fewer.

    `exact` takes one object at a time, bit-identical to upstream. Otherwise objects share batches of at most
    `max_group` (None: what is fastest on the device), which rounds differently in the last digits.
    """

    reverse: bool = True
    exact: bool = False
    max_group: int | None = Field(default=None, ge=1, le=1024)
    on_cut: Literal["flag", "stop", "ignore"] = "flag"
    cut_threshold: float = Field(default=0.5, gt=0, lt=1, allow_inf_nan=False)


class ScoreSettings(_Section):
    """How uncertainty is computed: frames per evaluation of the heads, and a bank to use instead of the model's own."""

    chunk_frames: int = Field(default=16, ge=1, le=4096)
    bank: Path | None = None

    _expand_bank = field_validator("bank", mode="before")(_expand)


class OutputSettings(_Section):
    """What is written besides labels, how it is compressed, and where scratch files lie.

    `scratch_dir` None means the system's temporary folder. `jpeg_quality` is Pillow's 1..95. About every
    `checkpoint_seconds` the job saves where it stands, so that a run that is killed costs no more than that; None turns
    it off. Checkpoints lie in `scratch_dir`, else in the cache folder (`pipeline.job_checkpoint`).
    """

    candidates: bool = False
    tokens: bool = False
    review_frames: bool = True
    max_review_frames: int = Field(default=50, ge=0)
    jpeg_quality: int = Field(default=85, ge=1, le=95)
    row_group_rows: int = Field(default=32_768, ge=1)
    scratch_dir: Path | None = None
    checkpoint_seconds: float | None = Field(default=300.0, ge=0, allow_inf_nan=False)

    _expand_scratch = field_validator("scratch_dir", mode="before")(_expand)


class DropSettings(_Section):
    """How new drops are worked off unattended (`pipeline.plan`, `pipeline.work`).

    A video counts once nothing was written to it for `settle_seconds`, or, with a `done_marker`, once `VIDEO` + marker
    lies beside it. A flow run takes `batch_videos`; at most `max_batches` are under way at once. An attempt that gave
    no sign for `lease_seconds` is lost. `max_attempts` failed or lost ones put a video into quarantine; between two of
    them in one run lie `retry_seconds`, doubled each time and jittered. `video_seconds` is the time limit of a video.
    """

    settle_seconds: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    done_marker: str | None = Field(default=None, min_length=1, pattern=r"^[^/\\\s]+$")
    batch_videos: int = Field(default=16, ge=1, le=1000)
    max_batches: int = Field(default=64, ge=1, le=10_000)
    max_attempts: int = Field(default=3, ge=1, le=100)
    retry_seconds: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    lease_seconds: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    video_seconds: float | None = Field(default=14_400.0, gt=0, allow_inf_nan=False)


class ReviewSettings(_Section):
    """How people are asked (`pipeline.review`).

    An item that nobody answered for `lease_seconds` goes to somebody else. An answer can be taken back for
    `undo_seconds`; then it is written to the output, from where it is applied. All reviewers together get
    `items_per_day` (None: no limit). While audits wait, `audit_share` of what is handed out are audits. A `webhook_url`
    is told of new items. Pictures of one label that differ in at most `same_look_bits` of 64 are near-duplicates, of
    which the later ones count less. `loop_frames` at most of a stretch are shown; a fix takes `max_points` clicks.
    """

    lease_seconds: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    undo_seconds: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    items_per_day: int | None = Field(default=None, ge=1)
    audit_share: float = Field(default=0.1, ge=0, le=1, allow_inf_nan=False)
    webhook_url: str | None = None
    same_look_bits: int = Field(default=6, ge=0, le=64)
    loop_frames: int = Field(default=24, ge=1, le=240)
    max_points: int = Field(default=64, ge=1, le=1024)


class StorageSettings(_Section):
    """How an S3 store is reached; keys left out come from the usual AWS_* variables and files.

    An operation on any store is tried again after passing errors for `retry_seconds`, counted anew whenever it gets on;
    a request that neither sends nor gets a byte for `stall_seconds` is broken (`pipeline.storage.retry`).
    """

    endpoint_url: str | None = None
    region: str | None = None
    retry_seconds: float = Field(default=120.0, ge=0, allow_inf_nan=False)
    stall_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    access_key_id: SecretStr | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None


_OPEN_STORAGE = frozenset(
    f"storage.{name}" for name, field in StorageSettings.model_fields.items() if field.annotation != SecretStr | None
)
"""Those of its settings that anyone may read."""


class Settings(_Section):
    """All settings of a run.

    Example: `load_settings(None, {"model.device": "cpu"}).model.device == "cpu"`.
    """

    model: ModelSettings = ModelSettings()
    decode: DecodeSettings = DecodeSettings()
    prompts: PromptSettings = PromptSettings()
    propagate: PropagateSettings = PropagateSettings()
    score: ScoreSettings = ScoreSettings()
    output: OutputSettings = OutputSettings()
    drops: DropSettings = DropSettings()
    review: ReviewSettings = ReviewSettings()
    storage: StorageSettings = StorageSettings()
    policy: Policy = Field(default_factory=Policy)


def load_settings(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read settings: configs/default.yaml, then a file over it, then overrides over both.

    Args:
        path: a YAML file, or the bare name of a shipped one (`demo`, `gpu`); None for the defaults alone.
        overrides: nested (`{"model": {"device": "cpu"}}`) or dotted (`{"model.device": "cpu"}`); the last word.
    Returns: frozen settings.
    Raises: SettingsError naming the file and key: unknown (with the nearest known one), of a wrong type, out of range.
    """
    default = config_dir() / "default.yaml"
    merged = read_yaml(default, SettingsError)
    _check(merged, str(default))
    if path is not None:
        file = _locate(path)
        layer = read_yaml(file, SettingsError)
        _merge(merged, layer)
        _check(merged, str(file))
    if overrides:
        _merge(merged, _nested(overrides))
    return _check(merged, "the settings given" if overrides else str(path or default))


def refuse_secrets(overrides: Mapping[str, Any] | None) -> None:
    """Let no key of a store into the parameters of a flow run, which a server keeps and shows.

    Args:   overrides: as `load_settings` takes them, nested or dotted.
    Raises: SettingsError that names the setting, never its value.
    """
    for key, value in _leaves(_nested(overrides or {})):
        userinfo = isinstance(value, str) and "@" in value.partition("://")[2].partition("/")[0]
        # A name that is unknown here may be a key with a typing mistake.
        if userinfo or (key.partition(".")[0] == "storage" and key not in _OPEN_STORAGE and value is not None):
            step = "set AWS_ACCESS_KEY_ID and its neighbours on the workers, or write it into a settings file there"
            raise SettingsError("overrides without secrets", f"a value for {key}", step)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values of a tree with their dotted names."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _locate(path: str | Path) -> Path:
    """The settings file of a path or of a shipped name."""
    file = Path(path).expanduser()
    if file.is_file():
        return file
    shipped = {found.stem: found for found in config_dir().glob("*.yaml")}
    if str(path) in shipped:
        return shipped[str(path)]
    raise SettingsError(
        f"a settings file or one of {', '.join(sorted(shipped))}", f"no file {path}", did_you_mean(str(path), shipped)
    )


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides with dotted keys taken apart."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        *parents, last = key.split(".")
        leaf: dict[str, Any] = {last: _nested(value) if isinstance(value, Mapping) else value}
        for parent in reversed(parents):
            leaf = {parent: leaf}
        _merge(tree, leaf)
    return tree


def _merge(base: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Lay one tree over another, in place; anything but a mapping replaces what was there."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        elif value is None and isinstance(base.get(key), dict):
            continue  # a section whose keys are all commented out
        else:
            base[key] = value


def _check(tree: Mapping[str, Any], source: str) -> Settings:
    """Validated settings, or an error that names the first wrong key."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(*first_mistake(error, Settings, source)) from None
