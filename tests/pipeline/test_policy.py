"""A policy is data: read strictly from YAML, known by its content, with a schema for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.policy import GroupThreshold, Policy, PolicyError, load_policy, policy_schema
from pipeline.settings import config_dir, load_settings

FULL: dict[str, Any] = {
    "max_uncertainty": 0.2, "hold_above_uncertainty": 0.6, "max_model_gap": 0.2, "max_area_share": 0.5,
    "labels": {"person": "hold"}, "review_stretches_per_video": 5,
    "groups": [{"source": "day", "label": "cup", "max_uncertainty": 0.3}, {"model": "m", "max_uncertainty": None}],
}  # fmt: skip


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return path


def test_the_schema_that_ships_is_the_models_own() -> None:
    shipped = json.loads((config_dir() / "policy.schema.json").read_text())
    assert shipped == policy_schema()
    assert all("description" in one for name, one in shipped["properties"].items() if name != "name")


def test_a_file_is_a_policy_or_settings_that_have_one(tmp_path: Path) -> None:
    plain = load_policy(written(tmp_path, yaml.safe_dump(FULL)))
    assert plain == load_policy(written(tmp_path, yaml.safe_dump({"model": {"device": "cpu"}, "policy": FULL})))
    assert plain.groups == (
        GroupThreshold(source="day", label="cup", max_uncertainty=0.3), GroupThreshold(model="m", max_uncertainty=None)
    )  # fmt: skip
    assert load_policy(written(tmp_path, "")) == Policy() == load_policy(config_dir() / "default.yaml")


def test_a_policy_comes_back_from_what_files_say_of_it() -> None:
    policy = Policy(**FULL)
    again = Policy.model_validate_json(json.dumps(policy.model_dump(mode="json")))
    assert (again, again.policy_id) == (policy, policy.policy_id)
    assert len({Policy(**{**FULL, name: None}).policy_id for name in ("max_model_gap", "max_area_share")}) == 2


def test_what_a_policy_did_not_say_before_there_was_a_word_for_it_does_not_change_its_id() -> None:
    assert Policy().policy_id == "a3747f6e2bef7269"
    assert set(Policy(max_task_gap=0.1).model_dump()) - set(Policy().model_dump()) == {"max_task_gap"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_uncertainti: 0.2", "did you mean 'max_uncertainty'"),
        ("policy: {audit_rat: 0.2}", "did you mean 'audit_rate'"),
        ("groups: [{lable: cup, max_uncertainty: 0.2}]", "did you mean 'groups.0.label'"),
        ("groups: [{label: cup}]", "groups.0.max_uncertainty"),
        ("max_uncertainty: much", "max_uncertainty in"),
        ("max_uncertainty: .nan", "max_uncertainty in"),
        ("labels: {person: keep}", "'review' or 'hold'"),
        (
            "{max_uncertainty: 0.4, hold_above_uncertainty: 0.3}",
            "crossed thresholds: it is below max_uncertainty (0.4)",
        ),
        (
            "{hold_above_uncertainty: 0.5, groups: [{label: cup, max_uncertainty: 0.6}]}",
            "crossed thresholds: group 0 (label cup) accepts up to 0.6, hold_above_uncertainty (0.5) is below",
        ),
        (
            "groups: [{label: cup, max_uncertainty: 0.2}, {source: day, label: cup, max_uncertainty: 0.3}]",
            "group 1 (source day, label cup) never counts: group 0 (label cup) comes first",
        ),
        ("policy: 3", "a mapping under `policy`"),
        ("- 3", "a mapping of sections"),
        ("a: [", "readable YAML"),
        ("name: 2026-13-45", "readable YAML"),
        ("seed: 0x_", "readable YAML"),
        ("audit_rate: yes", "not yes or no"),
        ("{max_uncertainty: 0.3, max_uncertainty: 0.4}", "max_uncertainty is there twice"),
        pytest.param("[" * 3000, "readable YAML", id="deep"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PolicyError) as told:
        load_policy(written(tmp_path, text))
    assert message in str(told.value)
    assert "policy.yaml" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"none\.yaml"):
        load_policy(tmp_path / "none.yaml")


def test_settings_name_the_same_mistakes() -> None:
    with pytest.raises(Exception, match=r"did you mean 'policy\.groups\.0\.label'"):
        load_settings(None, {"policy.groups": [{"lable": "cup", "max_uncertainty": 0.2}]})
    with pytest.raises(Exception, match=r"policy\.hold_above_uncertainty in .*: crossed thresholds"):
        load_settings(None, {"policy.hold_above_uncertainty": 0.1})
