"""What the engine's tests share."""

from __future__ import annotations

import pytest

TESTS = __file__.rpartition("conftest.py")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(TESTS):
            item.add_marker(pytest.mark.engine)


@pytest.fixture(params=["loop", "grouped"])
def path(request: pytest.FixtureRequest) -> str:
    """How a bank computes its low-rank products: one product an adapter, or one grouped product (works on CPUs too)."""
    return str(request.param)
