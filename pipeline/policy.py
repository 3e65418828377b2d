"""The policy, as data: by which thresholds and rules a mask is trusted, seen by a person, or held back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)  # fmt: skip

from pipeline.checked_yaml import first_mistake, read_yaml
from pipeline.errors import SettingsError


class PolicyError(SettingsError):
    """A policy that cannot be read, or contradicts itself."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_field_is_yes_or_no(cls, value: Any) -> Any:
        if isinstance(value, bool):  # else `audit_rate: yes` would be 1
            raise ValueError("not yes or no")
        return value


class GroupThreshold(_Frozen):
    """A threshold of its own for the rows of one source, label or model."""

    source: str | None = None
    """The drop under which readers find the video (`drop=NAME`); null is any."""
    label: str | None = None
    """Label of the object; null is any."""
    model: str | None = None
    """Name of the model that made the facts; null is any."""
    max_uncertainty: float | None = Field(ge=0, le=1, allow_inf_nan=False)
    """Highest uncertainty that is accepted, 0..1; null: no prediction of this group is accepted."""

    def __str__(self) -> str:
        """`source day, label cup`."""
        named = {name: getattr(self, name) for name in ("source", "label", "model")}
        return ", ".join(f"{name} {value}" for name, value in named.items() if value is not None) or "all"

    def covers(self, other: GroupThreshold) -> bool:
        """Whether every row of the other group is one of this."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("source", "label", "model"))
        return all(mine is None or mine == theirs for mine, theirs in pairs)


class Policy(_Frozen):
    """Which rows are trusted. The defaults are a guess and say so: without a certificate a policy is uncertified.

    Rules are about predictions. A frame that a person prompted by a full mask is given, so accepted; a frame that the
    model did not look at is held.
    """

    name: str = "default"
    """For people; part of the id."""
    max_uncertainty: float = Field(default=0.25, ge=0, le=1, allow_inf_nan=False)
    """Highest uncertainty that is accepted where no group says otherwise, 0..1."""
    hold_above_uncertainty: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """Higher than this is held back, not worth a person's time; null holds nothing. Not below any `max_uncertainty`."""
    absent: Literal["review", "accept", "hold", "score"] = "review"
    """What happens to a row whose object the model calls absent. `score`: treat it like a visible one."""
    across_cut: Literal["review", "accept"] = "review"
    """What happens to a row that a scene cut parts from every prompted frame of its object."""
    auto_margin: float = Field(default=0.05, ge=0, le=1, allow_inf_nan=False)
    """Added to the uncertainty of automatically found objects before it meets a threshold, 0..1."""
    min_object_score: float | None = Field(default=None, allow_inf_nan=False)
    """Lowest object logit (presence) of a visible row that is accepted; null leaves it out."""
    min_temporal_iou: float | None = Field(default=0.3, ge=0, le=1, allow_inf_nan=False)
    """Lowest IoU with the row before; lower is a temporal break. Null leaves it out."""
    max_area_change: float | None = Field(default=0.7, ge=0, le=1, allow_inf_nan=False)
    """Highest |relative change of area| against the row before, 0..1; null leaves it out."""
    min_area_px: int = Field(default=0, ge=0)
    """Smallest visible mask that is accepted, pixels."""
    min_gap: float = Field(default=0.1, ge=0, le=1, allow_inf_nan=False)
    """A USAM gap above this names the suggested action."""
    audit_rate: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Share of the accepted predictions that a person sees all the same, drawn by `seed`, 0..1."""
    seed: int = Field(default=0, ge=0)
    """Of the audit draw."""
    certificate: str | None = None
    """Id of the certificate of the output (`certificates/ID.json`) behind the thresholds; null is uncertified."""
    groups: tuple[GroupThreshold, ...] = ()
    """Thresholds of their own; the first group that a row belongs to counts."""
    max_model_gap: float | None = Field(default=None, ge=-1, le=1, allow_inf_nan=False)
    """Highest gain expected of a larger model, IoU, that is accepted. A row without the score is not; null: no rule."""
    max_prompt_gap: float | None = Field(default=None, ge=-1, le=1, allow_inf_nan=False)
    """The same for more clicks."""
    max_task_gap: float | None = Field(default=None, ge=-1, le=1, allow_inf_nan=False)
    """The same for another candidate mask."""
    max_area_share: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    """Largest share of the frame that an accepted visible mask covers; null leaves it out."""
    labels: dict[str, Literal["review", "hold"]] = Field(default_factory=dict)
    """Labels of which no prediction is accepted: `review` shows them to a person, `hold` keeps them from both."""
    review_stretches_per_video: int | None = Field(default=None, ge=0)
    """Stretches of a video that a person has time for, those of most doubt first; the others are held, never accepted.
    Audits are not counted. Null: no limit."""

    @field_validator("hold_above_uncertainty")
    @classmethod
    def _hold_not_below_accept(cls, hold: float | None, info: ValidationInfo) -> float | None:
        accept = info.data.get("max_uncertainty")
        if hold is not None and accept is not None and hold < accept:
            raise ValueError(f"crossed thresholds: it is below max_uncertainty ({accept:g}), which accepts more")
        return hold

    @field_validator("groups")
    @classmethod
    def _groups_agree(cls, groups: tuple[GroupThreshold, ...], info: ValidationInfo) -> tuple[GroupThreshold, ...]:
        hold = info.data.get("hold_above_uncertainty")
        for number, group in enumerate(groups):
            if hold is not None and group.max_uncertainty is not None and group.max_uncertainty > hold:
                raise ValueError(
                    f"crossed thresholds: group {number} ({group}) accepts up to {group.max_uncertainty:g}, "
                    f"hold_above_uncertainty ({hold:g}) is below"
                )
            for earlier, other in enumerate(groups[:number]):
                if other.covers(group):
                    raise ValueError(f"group {number} ({group}) never counts: group {earlier} ({other}) comes first")
        return groups

    @model_serializer(mode="wrap")
    def _without_what_says_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later fields that are at their defaults, so that policies of before keep their ids and bytes."""
        said: dict[str, Any] = serialize(self)
        for name in _LATER_FIELDS:
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True):
                said.pop(name, None)
        return said

    @property
    def policy_id(self) -> str:
        """Hash of everything that the policy says; equal policies have equal ids."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


_LATER_FIELDS = (
    "groups", "max_model_gap", "max_prompt_gap", "max_task_gap", "max_area_share", "labels",
    "review_stretches_per_video",
)  # fmt: skip


def load_policy(path: str | Path) -> Policy:
    """The policy in a YAML file.

    Args:   path: a mapping of the fields of `Policy`, or a settings file, of which the section `policy` counts.
    Raises: PolicyError naming the file and the field: unknown (with the nearest known one), of a wrong type, out of
            range, or crossed with another.
    """
    file = Path(path).expanduser()
    tree = read_yaml(file, PolicyError)
    said = tree.get("policy", tree)
    if not isinstance(said, dict | None):
        raise PolicyError(f"a mapping under `policy` in {file}", repr(said), "write for example `max_uncertainty: 0.2`")
    try:
        return Policy.model_validate(said or {})
    except ValidationError as error:
        raise PolicyError(*first_mistake(error, Policy, str(file))) from None


def policy_schema() -> dict[str, Any]:
    """The JSON schema of a policy, for editors and programs; it is `configs/policy.schema.json`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Policy.model_json_schema()}
