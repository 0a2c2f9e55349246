"""For whom Citus has opened a session."""

from __future__ import annotations

import pytest

from pgherd.engine.citus.blockers import origin


@pytest.mark.parametrize(
    ("application", "expected"),
    [
        ("citus_internal gpid=10000004711", (1, 4711)),
        ("citus_rebalancer gpid=160000000012", (16, 12)),
        ("psql", (None, None)),
        ("", (None, None)),
        ("gpid=", (None, None)),
    ],
)
def test_an_application_name_tells_the_process_that_began_it(
    application: str, expected: tuple[int | None, int | None]
) -> None:
    assert origin(application) == expected
