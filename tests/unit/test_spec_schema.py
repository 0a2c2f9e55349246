"""The resource's schema: what Kubernetes demands of it, and that it says the same as the models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pgherd.model import spec, spec_schema
from pgherd.model.spec_models import MAX_SEGMENTS
from tests.kubernetes import test_refusals


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from walk(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from walk(schema[key], f"{path}[]")


def test_the_schema_is_structural() -> None:
    for path, schema in walk(spec.crd_schema()):
        assert not {"$ref", "anyOf", "allOf", "oneOf", "title", "const", "$defs"} & set(schema), path
        untyped = {"x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"} & set(schema)
        assert ("type" in schema) or untyped, path
        assert not ("properties" in schema and "additionalProperties" in schema), path


def test_every_field_of_the_spec_has_a_description_and_a_default_or_is_optional() -> None:
    spec_schema = spec.crd_schema()["properties"]["spec"]
    for path, schema in walk(spec_schema):
        if not path.endswith("[]"):
            assert schema.get("description"), path
    assert "required" not in spec_schema


def test_defaults_and_bounds_are_the_models() -> None:
    fields = spec.crd_schema()["properties"]["spec"]["properties"]
    count = fields["segments"]["properties"]["count"]
    assert (count["default"], count["minimum"], count["maximum"]) == (2, 1, MAX_SEGMENTS)
    assert fields["segments"]["default"] == {}
    assert fields["engine"]["enum"] == ["citus", "fdw"]
    assert (
        fields["segments"]["properties"]["storage"]["properties"]["size"]["x-kubernetes-int-or-string"]
        is True
    )


def test_rules_guard_what_may_not_change() -> None:
    rules = spec.crd_schema()["x-kubernetes-validations"]
    assert {".spec.shardCount", ".spec.postgres.version"} <= {
        rule["fieldPath"] for rule in rules if rule["message"] == "can't be changed"
    }
    assert all("self" in rule["rule"] for rule in rules)


def test_what_may_be_left_out_is_not_filled_in_however_deep_it_is() -> None:
    """A repository that is left out is another cluster's; an empty one would be none."""
    recovery = spec.crd_schema()["properties"]["spec"]["properties"]["bootstrap"]["properties"]["recovery"]
    assert recovery["required"] == ["cluster"]
    assert "default" not in recovery["properties"]["repository"]


def test_the_api_server_asks_of_a_repository_only_where_there_is_one() -> None:
    rules = [each["rule"] for each in spec.crd_schema()["x-kubernetes-validations"]]
    of_recovery = [rule for rule in rules if "bootstrap.recovery.repository" in rule]
    assert len(of_recovery) == 4
    for rule in of_recovery:
        assert "has(self.spec.bootstrap.recovery.repository) ||" in rule


def test_the_real_api_server_is_asked_to_refuse_whatever_a_rule_forbids() -> None:
    for rule in spec_schema.RULES:
        told = f"{rule.get('fieldPath', '').removeprefix('.')}: Invalid value: {rule['message']}"
        assert any(re.search(says, told) for _, says in test_refusals.WRONG), rule["message"]
    stays = {".".join(("spec", *path)) for path in spec_schema.IMMUTABLE}
    grows = {f"spec.{group}.storage.size" for group in ("coordinator", "segments")}
    assert {path for _, path in test_refusals.FIXED} == stays | grows
