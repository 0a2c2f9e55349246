"""``pgherd explain``: what a field of the declaration means, read from the same models that check it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from pgherd.errors import BadInput
from pgherd.model.documents import KINDS
from pgherd.model.spec_models import KIND
from pgherd.model.spec_problems import nearest
from pgherd.model.spec_schema import Schema, declaration_schema

_WIDTH = 96


def explain(field: str | None = None) -> str:
    """A field's type, default, bounds and description, and the fields below it.

    :param field: a path such as ``spec.segments.count`` (``spec.`` may be left out), of another kind one that begins
        with it, such as ``PostgresBackupSchedule.spec.cron``; None: the whole declaration
    :raises BadInput: there is no such field; names the nearest
    """
    steps = [step for step in (field or "").split(".") if step]
    kind = next((each for each in KINDS if steps and each.lower() == steps[0].lower()), None)
    root = declaration_schema(KINDS[kind or KIND])
    path, schema = _find(steps[1:] if kind else steps, root)
    named = [kind] if kind and (kind != KIND or not path) else []
    lines = [f"FIELD: {'.'.join([*named, *path]) or KIND} <{type_of(schema)}>"]
    lines += [
        f"{label}: {text}"
        for label, text in (("DEFAULT", default_of(schema)), ("BOUNDS", bounds_of(schema)))
        if text
    ]
    lines += ["", textwrap.fill(schema.get("description", ""), _WIDTH)]
    below = fields_of(schema)
    if below:
        lines += ["", "FIELDS:"]
        required = schema_of_fields(schema).get("required", [])
        for name, inner in below.items():
            lines += list(_summary(name, inner, required=name in required))
    return "\n".join(lines)


def _find(path: list[str], root: Schema) -> tuple[list[str], Schema]:
    schema = root
    if path and path[0] not in schema["properties"] and path[0] in schema["properties"]["spec"]["properties"]:
        path = ["spec", *path]
    for depth, step in enumerate(path):
        name = step.split("[")[0]
        below = fields_of(schema)
        if name not in below:
            raise BadInput(_unknown(path[:depth], name, list(below), root))
        schema = below[name]
    return path, schema


def _unknown(parent: list[str], name: str, known: list[str], root: Schema) -> str:
    where = ".".join(parent)
    if not known:
        return f"{where} has no fields: see `pgherd explain {where}`"
    near = nearest(name, known if parent else [*known, *fields_of(root["properties"]["spec"])])
    hint = f"did you mean {near}?" if near else f"known here: {', '.join(known)}"
    return f"{'.'.join([*parent, name])}: unknown field; {hint}"


def _summary(name: str, schema: Schema, *, required: bool) -> Iterator[str]:
    facts = ["required"] if required else []
    facts += [f"default {default}"] if (default := default_of(schema)) else []
    facts += [bounds] if (bounds := bounds_of(schema)) else []
    yield f"  {name} <{type_of(schema)}>" + (f"  ({'; '.join(facts)})" if facts else "")
    yield textwrap.fill(
        schema.get("description", ""), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
    )


def schema_of_fields(schema: Schema) -> Schema:
    """The schema that holds the fields: a list's are those of its items."""
    items: Schema = schema.get("items", schema)
    return items


def fields_of(schema: Schema) -> dict[str, Schema]:
    """The fields below, by name, in order."""
    fields: dict[str, Schema] = schema_of_fields(schema).get("properties", {})
    return fields


def type_of(schema: Schema) -> str:
    """``integer``, ``list of object``, ``map of string``, ..."""
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "items" in schema:
        return f"list of {type_of(schema['items'])}"
    if "additionalProperties" in schema:
        return f"map of {type_of(schema['additionalProperties'])}"
    return str(schema.get("type", "string, number or boolean"))


def default_of(schema: Schema) -> str:
    """The default as YAML writes it; empty where there is none."""
    default = schema.get("default")
    if default is None or default in ({}, [], ""):
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)


def bounds_of(schema: Schema) -> str:
    """``1 to 256``, ``one of citus, fdw``; empty where there are none."""
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        return f"{low} to {high}" if high is not None else f">= {low}"
    return ""
