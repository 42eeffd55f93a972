"""The pytest plug-in: one fixture, and nothing heavy is imported before a test asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.testing import TestApp

__all__ = ["millstream_test"]


@pytest.fixture
def millstream_test() -> Callable[..., TestApp]:
    """``async with millstream_test(app) as t:`` runs an app; see `millstream.testing.TestApp`."""
    from millstream.testing import TestApp

    return TestApp
