"""Fixtures that several files of integration tests use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.ranks import Ranks


@pytest.fixture(scope="module")
def one() -> Iterator[Ranks]:
    """A single rank process."""
    ranks = Ranks(1)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    """Two rank processes."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()
