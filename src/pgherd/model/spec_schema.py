"""The declaration's models as an OpenAPI v3 schema in the form that Kubernetes demands ("structural").

Nothing here knows a field: descriptions, defaults and bounds come from the models, so the resource in
Kubernetes, the file on a laptop and ``pgherd explain`` can't drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from pgherd.model.spec_models import DEFAULT_ENGINE, MAX_NAME, OWN_ENDING, OWN_ENDING_MESSAGE, PostgresCluster

Schema = dict[str, Any]

IMMUTABLE = (
    ("engine",),
    ("database",),
    ("shardCount",),
    ("postgres", "version"),
    ("coordinator", "storage", "storageClassName"),
    ("segments", "storage", "storageClassName"),
)
"""Paths below ``spec`` that may not change in a cluster that exists, nor be set or left out later."""

_LEFT_OUT = {("spec", "engine"): DEFAULT_ENGINE["kubernetes"]}
"""what Kubernetes takes where such a field is left out: to write that down is no change"""

RULES: tuple[Schema, ...] = (
    {
        "rule": "self.spec.segments.count <= self.spec.shardCount",
        "message": "must be <= spec.shardCount",
        "fieldPath": ".spec.segments.count",
    },
    {
        "rule": "!has(self.spec.backup) || !has(self.spec.backup.repository.path)",
        "message": "a path is for the local platform: name volume, s3, gcs or azure, and method: pgbackrest",
        "fieldPath": ".spec.backup.repository",
    },
    {
        "rule": "!has(self.spec.bootstrap) || !has(self.spec.bootstrap.recovery)"
        " || !has(self.spec.bootstrap.recovery.repository)"
        " || !has(self.spec.bootstrap.recovery.repository.path)",
        "message": "a path is for the local platform: name volume, s3, gcs or azure, and method: pgbackrest",
        "fieldPath": ".spec.bootstrap",
    },
    {
        "rule": "!has(self.spec.backup) || !has(self.spec.backup.repository.volume)"
        " || self.spec.backup.method == 'pgbackrest'",
        "message": "a volume needs method: pgbackrest",
        "fieldPath": ".spec.backup.method",
    },
    {
        "rule": "!has(self.spec.bootstrap) || !has(self.spec.bootstrap.recovery)"
        " || !has(self.spec.bootstrap.recovery.repository)"
        " || !has(self.spec.bootstrap.recovery.repository.volume)"
        " || self.spec.bootstrap.recovery.method == 'pgbackrest'",
        "message": "a volume needs method: pgbackrest",
        "fieldPath": ".spec.bootstrap",
    },
    {
        "rule": "!has(self.spec.bootstrap) || !has(self.spec.bootstrap.recovery)"
        " || has(self.spec.bootstrap.recovery.repository)"
        " || (self.spec.bootstrap.recovery.method == 'native' && !self.spec.bootstrap.recovery.encrypt"
        " && !has(self.spec.bootstrap.recovery.secretRef))",
        "message": "recovery: method, secretRef and encrypt go with repository: name that, too, or leave out all",
        "fieldPath": ".spec.bootstrap",
    },
    {
        "rule": "!has(self.spec.bootstrap) || !has(self.spec.bootstrap.recovery)"
        " || has(self.spec.bootstrap.recovery.repository)"
        " || self.spec.bootstrap.recovery.cluster != self.metadata.name",
        "message": "recovery.cluster is the cluster itself: name the repository of the one that had its name",
        "fieldPath": ".spec.bootstrap",
    },
    {
        "rule": "!has(self.spec.bootstrap) || !has(self.spec.bootstrap.clone)"
        " || self.spec.bootstrap.clone.cluster != self.metadata.name",
        "message": "clone.cluster is the cluster itself: name the one that is to be copied",
        "fieldPath": ".spec.bootstrap",
    },
    {
        "rule": "self.spec.expansion.mode != 'clone' || !has(self.spec.engine) || self.spec.engine == 'citus'",
        "message": "clone needs spec.engine citus: use online or blocking",
        "fieldPath": ".spec.expansion.mode",
    },
    {
        "rule": f"!self.metadata.name.matches('{OWN_ENDING}')",
        "message": f"metadata.name {OWN_ENDING_MESSAGE}",
    },
)
"""What must go together, in CEL."""

_KEEP = (
    "description",
    "type",
    "enum",
    "default",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "maxItems",
    "pattern",
    "required",
)


def crd_schema() -> Schema:
    """``openAPIV3Schema`` of the resource: no ``$ref``, every field with description, default and bounds.

    What may not change is refused by CEL rules; ``status`` is left open, its shape is pgherd's own.
    """
    schema = declaration_schema()
    schema["required"] = ["metadata"]
    # At the root: below it, Kubernetes would try the rules on defaults that are not filled in yet.
    schema["x-kubernetes-validations"] = [
        *(_stays(("spec", *path)) for path in IMMUTABLE),
        *(_never_shrinks(("spec", group, "storage", "size")) for group in ("coordinator", "segments")),
        *RULES,
    ]
    return _as_resource(schema)


def kind_schema(model: type[BaseModel], immutable: Sequence[tuple[str, ...]]) -> Schema:
    """``openAPIV3Schema`` of one of the smaller kinds.

    :param immutable: paths below ``spec`` that may not change
    """
    schema = declaration_schema(model)
    schema["required"] = ["metadata", "spec"]
    schema["x-kubernetes-validations"] = [_stays(("spec", *path)) for path in immutable]
    return _as_resource(schema)


def _as_resource(schema: Schema) -> Schema:
    # Kubernetes owns metadata; a resource may only narrow its name.
    schema["properties"]["metadata"] = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": MAX_NAME, "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}
        },
    }
    for name in ("apiVersion", "kind"):
        schema["properties"][name] = {"type": "string"}
    schema["properties"]["status"] = {
        "type": "object",
        "description": "What is; written by pgherd.",
        "x-kubernetes-preserve-unknown-fields": True,
    }
    return schema


def declaration_schema(model: type[BaseModel] = PostgresCluster) -> Schema:
    """The schema of a whole declaration as files hold it, with a description of ``metadata`` too."""
    generated = model.model_json_schema(by_alias=True, mode="validation")
    schema = _structural(generated, generated["$defs"].__getitem__)
    # In a file they must be there: they say what all other fields mean.
    needed = {"apiVersion", "kind", *schema.get("required", ())}
    schema["required"] = [name for name in schema["properties"] if name in needed]
    for name in ("apiVersion", "kind"):
        schema["properties"][name].pop("default")
    return schema


def _structural(schema: Mapping[str, Any], definition: Callable[[str], Schema]) -> Schema:
    """One generated schema, with references resolved and without what Kubernetes does not take."""
    while "$ref" in schema or "anyOf" in schema:
        if "anyOf" in schema:
            schema = _one_of(schema)
        else:
            resolved = definition(schema["$ref"].removeprefix("#/$defs/"))
            schema = {**resolved, **{key: value for key, value in schema.items() if key != "$ref"}}
    result: Schema = {key: schema[key] for key in _KEEP if schema.get(key) is not None}
    if "const" in schema:
        result["enum"] = [schema["const"]]
    if "properties" in schema:
        result["properties"] = {name: _structural(s, definition) for name, s in schema["properties"].items()}
    elif isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(schema["additionalProperties"], definition)
    if "items" in schema:
        result["items"] = _structural(schema["items"], definition)
    # What may be left out as a whole is not filled in with its parts' defaults: that would be to ask for it.
    may_lack = "default" in schema and schema["default"] is None
    if result.get("type") == "object" and "required" not in result and not may_lack:
        result.setdefault("default", {})
    return result | {key: value for key, value in schema.items() if key.startswith("x-kubernetes-")}


def _one_of(schema: Mapping[str, Any]) -> Schema:
    """A union as one schema: an optional value, a whole number or text, or anything scalar."""
    choices = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
    flat = [part for choice in choices for part in choice.get("anyOf", [choice])]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    if len(flat) == 1:
        # Not structural yet: done twice, what may be left out is not known for that any more.
        return {**flat[0], **rest}
    if {part.get("type") for part in flat} == {"integer", "string"}:
        return {**rest, "x-kubernetes-int-or-string": True}
    return {**rest, "x-kubernetes-preserve-unknown-fields": True}


def _stays(path: tuple[str, ...]) -> Schema:
    """A CEL rule: the field keeps its value, or stays left out."""
    was, now = (".".join((root, *path)) for root in ("oldSelf", "self"))
    if path in _LEFT_OUT:
        before, after = (f"(has({value}) ? {value} : '{_LEFT_OUT[path]}')" for value in (was, now))
        rule = f"{after} == {before}"
    else:
        rule = f"has({now}) == has({was}) && (!has({was}) || {now} == {was})"
    return {"rule": rule, "message": "can't be changed", "fieldPath": f".{'.'.join(path)}"}


def _never_shrinks(path: tuple[str, ...]) -> Schema:
    """A CEL rule: a quantity of bytes stays or grows."""
    was, now = (f"quantity(string({'.'.join((root, *path))}))" for root in ("oldSelf", "self"))
    return {
        "rule": f"{now}.compareTo({was}) >= 0",
        "message": "may not shrink",
        "fieldPath": f".{'.'.join(path)}",
    }
