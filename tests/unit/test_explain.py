"""``explain``: every field is found, with what the models say of it."""

from __future__ import annotations

import pytest

from pgherd.errors import BadInput
from pgherd.model.explain import explain, fields_of
from pgherd.model.spec_schema import Schema, declaration_schema


def paths(schema: Schema, prefix: str = "") -> list[str]:
    return [
        path
        for name, inner in fields_of(schema).items()
        for path in [f"{prefix}{name}", *paths(inner, f"{prefix}{name}.")]
    ]


def test_every_field_is_explained() -> None:
    for path in paths(declaration_schema()):
        text = explain(path)
        assert text.startswith(f"FIELD: {path} <"), path
        assert len(text.splitlines()) >= 3, path


def test_a_field_shows_type_default_and_bounds() -> None:
    text = explain("spec.segments.count")
    assert "FIELD: spec.segments.count <integer>\nDEFAULT: 2\nBOUNDS: 1 to 256\n" in text


def test_spec_may_be_left_out() -> None:
    assert explain("segments.count") == explain("spec.segments.count")


def test_without_a_field_the_whole_is_explained() -> None:
    assert "  metadata <object>  (required)" in explain()


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("spec.segmets.count", "spec.segmets: unknown field; did you mean segments?"),
        ("segments.cuont", "spec.segments.cuont: unknown field; did you mean count?"),
        ("segmens", "segmens: unknown field; did you mean segments?"),
        ("xyz", "xyz: unknown field; known here: apiVersion, kind, metadata, spec"),
        ("spec.shardCount.x", "spec.shardCount has no fields: see `pgherd explain spec.shardCount`"),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest(field: str, expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        explain(field)
    assert str(caught.value).startswith(expected)
