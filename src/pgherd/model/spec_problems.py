"""What pydantic found wrong, in words to act on: ``spec.segments.count: must be >= 1, got 0``."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pgherd.model.spec_models import ClusterSpec, PostgresCluster
from pgherd.model.spec_parameters import weakens_durability

Path = tuple[str | int, ...]
Found = tuple[Path, str]
"""where, and what is wrong there"""

NO_CLONES = "clone needs spec.engine citus: use online or blocking"

_WANTED = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "greater_than_equal": "must be >= {ge}",
    "less_than_equal": "must be <= {le}",
    "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length} characters",
    "too_long": "must have at most {max_length} entries",
}


def problems_of(error: ValidationError, root: type[BaseModel] = PostgresCluster) -> list[Found]:
    """Everything that pydantic found wrong in a declaration of one kind."""
    return [_found(details, root) for details in error.errors(include_url=False)]


def _found(details: ErrorDetails, root: type[BaseModel]) -> Found:
    path: Path = details["loc"]
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return path, _unknown(path, root)
    if kind == "missing":
        return path, "is required"
    if kind == "rule":
        return path, details["msg"]
    if kind == "literal_error":
        wanted = "must be one of " + ", ".join(sorted(_choices(str(context.get("expected", "")))))
        return path, f"{wanted}, got {shown(details['input'])}"
    if kind == "value_error":
        text = str(context["error"])
        return path, text if isinstance(
            details["input"], Mapping
        ) else f"{text}, got {shown(details['input'])}"
    wanted = _WANTED.get(kind, details["msg"]).format(**context)
    return path, f"{wanted}, got {shown(details['input'])}"


def _choices(expected: str) -> Iterator[str]:
    for choice in expected.replace(" or ", ", ").split(","):
        yield choice.strip().strip("'")


def _unknown(path: Path, root: type[BaseModel]) -> str:
    model = model_at(path[:-1], root)
    known = list(field_names(model)) if model else []
    near = nearest(str(path[-1]), known)
    if near:
        return f"unknown field; did you mean {near}?"
    return f"unknown field; known here: {', '.join(known)}"


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that ``name`` was probably meant to be."""
    folded = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.replace("_", "").lower(), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def field_names(model: type[BaseModel]) -> Mapping[str, str]:
    """The model's attributes by the name that files use."""
    return {str(field.alias or name): name for name, field in model.model_fields.items()}


def model_at(path: Path, root: type[BaseModel] = PostgresCluster) -> type[BaseModel] | None:
    """The model that describes what is at ``path``; None for values and free mappings."""
    model: type[BaseModel] | None = root
    for step in path:
        if isinstance(step, int):
            continue
        name = field_names(model).get(step) if model else None
        if model is None or name is None:
            return None
        model = _model_within(model.model_fields[name].annotation)
    return model


def _model_within(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_within(part))), None)


def shown(value: object) -> str:
    """A value for a message: short, as YAML writes it."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:56] + "...'"


def relations(raw: object) -> list[Found]:
    """Rules between fields, asked of what was written, so that all problems are told together."""
    spec = _mapping(_mapping(raw).get("spec"))
    count = _mapping(spec.get("segments")).get("count", 2)
    shards = spec.get("shardCount", ClusterSpec.model_fields["shard_count"].default)
    found: list[Found] = []
    if type(count) is int and type(shards) is int and count > shards >= 1:
        found.append((("spec", "segments", "count"), f"must be <= spec.shardCount ({shards}), got {count}"))
    if spec.get("engine") == "fdw" and _mapping(spec.get("expansion")).get("mode") == "clone":
        found.append((("spec", "expansion", "mode"), NO_CLONES))
    durability = spec.get("durability", "synchronous")
    for name, value in _mapping(_mapping(spec.get("postgres")).get("parameters")).items():
        if isinstance(value, str | int | bool) and weakens_durability(name, value, durability):
            wanted = "must be on or remote_apply, or set spec.durability: asynchronous"
            found.append((("spec", "postgres", "parameters", name), f"{wanted}, got {shown(value)}"))
    return found


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
