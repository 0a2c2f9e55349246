"""A test that fails says what its home looked like: on another machine nobody can look any more."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from tests.support.home import Home


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the status and the end of the supervisor's log of the homes that a failed test had."""
    report = yield
    if report.when == "call" and report.failed:
        arguments: dict[str, Any] = getattr(item, "funcargs", {})
        for name, value in arguments.items():
            if isinstance(value, Home):
                report.sections.append((f"home of {name}", value.describe()))
    return report
