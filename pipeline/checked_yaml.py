"""YAML files as frozen models: a mapping is read, and the first mistake in it is named, with the nearest known key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import MasksieveError
from pipeline.suggest import did_you_mean

SHOWN_CHARACTERS = 160


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that says a key twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
                seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def read_yaml(path: Path, error: type[MasksieveError]) -> dict[str, Any]:
    """The mapping in a file; an empty file is an empty mapping.

    Raises: `error` for a file that is missing, no YAML, or no mapping.
    """
    try:
        data = _UniqueKeys(path.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError as missing:
        raise error(f"a file at {path}", "nothing there", "check the path") from missing
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as reason:  # all but OS's from yaml
        got = f"{path}: {' '.join(str(reason).split())}"
        raise error("readable YAML", got, "repair the file or leave it out") from reason
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise error(
            "a mapping of sections", f"{type(data).__name__} in {path}", "write for example `model: {name: sam2_nano}`"
        )
    return data


def first_mistake(found: ValidationError, model: type[BaseModel], source: str) -> tuple[str, str, str]:
    """What to say about a mapping that a model refused: expected, got, next step.

    Args:   model: the one that refused; its fields are the known names.
            source: the file, for people.
    """
    first = found.errors(include_url=False)[0]
    location = tuple(first["loc"])
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        prefix = "".join(f"{part}." for part in location[:-1])
        known = [f"{prefix}{name}" for name in _fields_at(model, location[:-1])]
        return f"a known setting in {source}", repr(key), did_you_mean(key, known)
    got = "a secret" if "key" in key or "token" in key else repr(first["input"])
    shown = got if len(got) <= SHOWN_CHARACTERS else f"{got[:SHOWN_CHARACTERS]}..."
    return f"{key} in {source}: {first['msg'].removeprefix('Value error, ')}", shown, f"change {key}"


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The names known in one section of a model; a number leads into a list of sections."""
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)
